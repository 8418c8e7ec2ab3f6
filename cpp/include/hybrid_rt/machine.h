#pragma once

#include <cstdint>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "hybrid_rt/specs.h"

namespace hybrid_rt {

/// A GPU, as NVIDIA's driver describes it.
struct CudaDevice {
  std::string name;        ///< name of the product
  std::string capability;  ///< compute capability, e.g. "9.0"
  int64_t memory = 0;      ///< total memory in bytes
};

/// The properties of a machine that an artifact can require. Fill one in by hand to ask whether an artifact would run
/// on another machine.
struct Machine {
  std::set<std::string> cpu_flags;         ///< names that the kernel uses: "avx2", "avx512_bf16", "amx_bf16", ...
  int64_t free_memory = 0;                 ///< free memory in bytes
  std::vector<CudaDevice> cuda_devices{};  ///< the GPUs that the driver lists
  std::string no_cuda_reason{};            ///< why there is no CUDA device, and the remedy; empty if there is one

  /// Returns the machine that this process runs on. Flags and devices are read once per process, the free memory at
  /// each call.
  static Machine here();
};

/// Returns why an artifact's requirements do not hold, or nothing if they do. The core checks "cpu" (flags with
/// commas), "memory" (bytes), "compute_capability" (of CUDA devices: "8.6,8.9", or a minimum: ">=8.0") and
/// "version" (a range of the backend's runtime, e.g. ">=1.17,<2"; not compared if `runtime_version` is empty); the
/// backend checks others. An artifact for CUDA needs a CUDA device; `cuda_index` is the index of the one that runs it.
std::optional<std::string> unmet(const ArtifactSpec& spec, const std::string& runtime_version, const Machine& machine,
                                 size_t cuda_index = 0);

/// Returns true if a version is in a range such as ">=1.17,<2". Text after the numbers ("2.15.0+cu132") is ignored.
/// Returns nothing if `range` is malformed.
std::optional<bool> is_in_range(const std::string& version, const std::string& range);

}  // namespace hybrid_rt
