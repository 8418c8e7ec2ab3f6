#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/Device.h>
#include <c10/util/ArrayRef.h>

#include <string>
#include <vector>

namespace hybrid_rt {

/// Settings of an engine on this machine; not part of the artifact.
struct EngineOptions {
  c10::Device device{c10::kCPU};  ///< device to run on
  /// Number of threads that one call may use; 0: as many as torch uses in the thread that prepares the engine.
  int threads = 0;
  /// Run in the artifact's precision even where the hardware can only emulate it (slower): for verification.
  /// Otherwise a backend may run a bf16 artifact in f32 on such hardware.
  bool emulate_precision = false;
  /// Run the engine once, on zeros, before it is used.
  bool warm_up = false;
  /// Number of concurrent calls, each with `threads` threads. More are allowed, but may wait for one another.
  int concurrency = 1;
  /// Bind the engine's threads to CPUs during a call, if they occupy every CPU that this process may run on and
  /// `concurrency` is 1. OpenVINO only. In a process that forks afterwards, the calls of all children would share one
  /// CPU.
  bool pin_threads = false;
};

/// An artifact that has been loaded and can run. This header and backend.h are free of torch/script.h, so that an
/// engine can be used where there is no TorchScript.
class Engine {
 public:
  Engine() = default;
  Engine(const Engine&) = delete;
  Engine& operator=(const Engine&) = delete;
  virtual ~Engine() = default;

  /// Runs once. May be called concurrently. `inputs` match the artifact's spec (count, dtype, rank, bounds,
  /// device: the caller has checked) and are contiguous; the outputs are new contiguous tensors of the caller's, in
  /// the spec's order. Throws Error(kBackend) with the vendor's message.
  virtual std::vector<at::Tensor> run(at::ArrayRef<at::Tensor> inputs) = 0;

  /// Returns one line for logs: the runtime, its version, the precision in use, and the number of threads.
  virtual std::string description() const = 0;
};

}  // namespace hybrid_rt
