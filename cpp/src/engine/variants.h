#pragma once

#include <memory>
#include <string>
#include <vector>

#include "bundle/blob_table.h"
#include "hybrid_rt/engine.h"
#include "hybrid_rt/engine_choice.h"
#include "hybrid_rt/machine.h"

namespace hybrid_rt {

/// Preferences that decide which variant runs, within what the machine can run.
struct Preference {
  /// Allows only variants of these backends, best first: "openvino", or with a precision: "openvino:bf16". Empty: all,
  /// in the file's order.
  std::vector<std::string> backends;
  bool strict = false;  ///< only the first of them may run
  /// The policy: only these may run, in the same notation. Empty: all.
  std::vector<std::string> allowed{};

  /// Returns the indices of the `specs` that the preference selects, best first.
  std::vector<size_t> order(const std::vector<ArtifactSpec>& specs) const;
  /// Returns true if the policy allows a variant.
  bool allows(const ArtifactSpec& spec) const;
};

/// Returns the preference from `backends` (names, separated by commas) if it is not empty, else from HYBRID_RT_BACKEND,
/// else none. The policy comes from `allow` if it is not empty, else from HYBRID_RT_ALLOW, else there is none.
Preference preference_from(const std::string& backends, bool strict = false,
                           const std::vector<std::string>& allow = {});

/// Checks each variant, in the file's order. `chosen` is set for the first preferred one that can run. Loads no
/// artifact.
std::vector<VariantCheck> check_variants(const std::vector<ArtifactSpec>& specs, const Preference& preference,
                                         const EngineOptions& options, const Machine& machine);

/// The engine of the chosen variant, and the checks of all variants.
struct ChosenEngine {
  std::shared_ptr<Engine> engine;
  size_t index = 0;  ///< index of the variant
  std::vector<VariantCheck> variants;
};

/// Checks the variants, then loads the first one that can run and whose load and warm-up succeed. If that fails after
/// the check passed, warns and tries the next one. Throws Error(kBackend) that lists every variant with its reason if
/// none is left, or if a strict preference would fall back. Throws Error(kBundle) if the chosen artifact's bytes do not
/// match their digest: an altered file is never hidden by a fallback.
ChosenEngine choose_engine(const std::string& name, const std::vector<ArtifactSpec>& specs, const BlobTable& table,
                           const Preference& preference, const EngineOptions& options, const Machine& machine);

}  // namespace hybrid_rt
