#pragma once

#include <c10/core/Stream.h>

#include <functional>
#include <memory>
#include <string>

// What is needed of CUDA beside torch's own streams, events and memory: through NVIDIA's driver, opened at run time. So
// the plug-in needs no CUDA toolkit to be built, and loads where there is no driver.

namespace hybrid_rt::tensorrt {

/// The stream that torch puts this thread's work on the device into.
c10::Stream current_stream(c10::Device device);

/// As the vendor takes it, a cudaStream_t.
void* handle_of(const c10::Stream& stream);

/// Returns the newest CUDA version that the driver supports, "13.0"; empty where there is no driver, or it does not
/// tell.
std::string driver_cuda_version();

/// Whether what is put into the stream is being recorded into a CUDA graph, by whoever.
bool is_capturing(const c10::Stream& stream);

/// Work that was recorded, to be run with one launch.
class CudaGraph {
 public:
  /// Records what `work` puts into the stream that it is given (a cudaStream_t): one that exists for this only, since
  /// the streams of torch's pool are lent to others too, whose work would be recorded. `work` gives false where it
  /// failed, and does not throw. Gives null, and the reason unless `work` failed, where that can't be recorded.
  static std::unique_ptr<CudaGraph> record(const std::function<bool(void* stream)>& work, std::string& reason);

  CudaGraph(const CudaGraph&) = delete;
  CudaGraph& operator=(const CudaGraph&) = delete;
  /// Its last launch must be over.
  ~CudaGraph();

  /// Throws Error(kBackend).
  void launch(const c10::Stream& stream) const;

 private:
  explicit CudaGraph(void* executable) : executable_(executable) {}

  void* executable_;
};

}  // namespace hybrid_rt::tensorrt
