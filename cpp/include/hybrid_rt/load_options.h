#pragma once

#include <c10/core/Device.h>

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

namespace hybrid_rt {

/// Proof that a bundle must provide before anything in it runs.
enum class TrustPolicy {
  kDigests,  ///< every record that is used matches the digest that was written with it
  kSigned,   ///< a signature of one of the trusted keys, and every record matches its digest
};
/// Options of load(), open_engine() and check().
struct LoadOptions {
  c10::Device device{c10::kCPU};  ///< device to run on; pass inputs on the same device
  /// Variants that may run, best first, separated by commas: "openvino", "openvino:bf16,torchscript". If empty:
  /// HYBRID_RT_BACKEND, or all, in the file's order.
  std::string backend{};
  /// Number of threads that an engine may use per call; 0: as many as torch uses in this thread.
  int threads = 0;
  /// See EngineOptions.
  bool emulate_precision = false;
  /// Throw an error instead of falling back if the first variant (of those that `backend` allows) can't run.
  bool strict = false;
  /// Image sizes (height, width) to run before load() returns, so that the first request is not the slow one. The
  /// engines run first; if one fails, the next variant replaces it.
  std::vector<std::pair<int64_t, int64_t>> warm_up{};
  TrustPolicy trust = TrustPolicy::kDigests;  ///< proof that the bundle must provide
  /// Paths of PEM files with Ed25519 public keys; any key requires a signature. If empty: HYBRID_RT_TRUSTED_KEYS, paths
  /// separated by colons.
  std::vector<std::string> trusted_keys{};
  /// Number of threads that call the module concurrently; see EngineOptions.
  int concurrency = 1;
  /// Backends that may run what the file holds, as `backend` names variants; all others are refused, whatever the file
  /// or `backend` asks for. Empty: HYBRID_RT_ALLOW, else every backend.
  std::vector<std::string> allow{};
  /// See EngineOptions.
  bool pin_threads = false;
};

}  // namespace hybrid_rt
