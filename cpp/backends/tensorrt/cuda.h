#pragma once

#include <c10/core/Stream.h>

#include <functional>
#include <memory>
#include <string>

// CUDA functions beyond torch's streams, events and memory, through NVIDIA's driver, which is opened at run time. So
// the plug-in needs no CUDA toolkit to build, and can be loaded without a driver.

namespace hybrid_rt::tensorrt {

/// Returns torch's current stream of this thread on the device.
c10::Stream current_stream(c10::Device device);

/// Returns the stream as a cudaStream_t.
void* handle_of(const c10::Stream& stream);

/// Returns the newest CUDA version that the driver supports, such as "13.0"; empty if there is no driver, or if it does
/// not report one.
std::string driver_cuda_version();

/// Returns true if the stream's work is being recorded into a CUDA graph, by anyone.
bool is_capturing(const c10::Stream& stream);

/// Recorded work that one launch runs.
class CudaGraph {
 public:
  /// Records the work that `work` launches into the stream that it receives (a cudaStream_t). The stream exists only
  /// for this call: a stream from torch's pool may be lent to others, whose work would be recorded too. `work` returns
  /// false if it fails, and must not throw. Returns null if recording is not possible, with the reason unless `work`
  /// failed.
  static std::unique_ptr<CudaGraph> record(const std::function<bool(void* stream)>& work, std::string& reason);

  CudaGraph(const CudaGraph&) = delete;
  CudaGraph& operator=(const CudaGraph&) = delete;
  /// Requires that its last launch is over.
  ~CudaGraph();

  /// Launches the graph. Throws Error(kBackend).
  void launch(const c10::Stream& stream) const;

 private:
  explicit CudaGraph(void* executable) : executable_(executable) {}

  void* executable_;
};

}  // namespace hybrid_rt::tensorrt
