#pragma once

#include <cstdint>
#include <optional>
#include <set>
#include <string>

#include "hybrid_rt/specs.h"

namespace hybrid_rt {

/// What an artifact can ask of a machine. One of one's own answers "would it run there?".
struct Machine {
  std::set<std::string> cpu_flags;  ///< as the kernel names them: "avx2", "avx512_bf16", "amx_bf16", ...
  int64_t free_memory = 0;          ///< bytes

  /// The one that this process runs on.
  static Machine here();
};

/// Why an artifact's requirements do not hold, or nothing if they do. Those of the core are "version" (a range of the
/// backend's runtime, e.g. ">=1.17,<2"), "cpu" (flags, separated by commas) and "memory" (bytes); the others are left
/// to the backend.
std::optional<std::string> unmet(const ArtifactSpec& spec, const std::string& runtime_version, const Machine& machine);

}  // namespace hybrid_rt
