#pragma once

#include <c10/core/Stream.h>

#include <memory>
#include <string>

// What is needed of CUDA beside torch's own streams, events and memory: through NVIDIA's driver, opened at run time. So
// the plug-in needs no CUDA toolkit to be built, and loads where there is no driver.

namespace hybrid_rt::tensorrt {

/// The stream that torch puts this thread's work on the device into.
c10::Stream current_stream(c10::Device device);

/// As the vendor takes it, a cudaStream_t.
void* handle_of(const c10::Stream& stream);

/// Whether what is put into the stream is being recorded into a CUDA graph, by whoever.
bool is_capturing(const c10::Stream& stream);

/// Work that was recorded from a stream, to be run with one launch.
class CudaGraph {
 public:
  /// Records what `work` puts into the stream, which is none that others use. Gives null, and the reason, where that
  /// can't be recorded.
  template <typename Work>
  static std::unique_ptr<CudaGraph> record(const c10::Stream& stream, const Work& work, std::string& reason) {
    if (!begin(stream, reason)) return nullptr;
    bool succeeded = false;
    try {
      succeeded = work();
    } catch (...) {
      end(stream, reason);
      throw;
    }
    std::unique_ptr<CudaGraph> graph = end(stream, reason);
    return succeeded ? std::move(graph) : nullptr;
  }

  CudaGraph(const CudaGraph&) = delete;
  CudaGraph& operator=(const CudaGraph&) = delete;
  /// Its last launch must be over.
  ~CudaGraph();

  /// Throws Error(kBackend).
  void launch(const c10::Stream& stream) const;

 private:
  explicit CudaGraph(void* executable) : executable_(executable) {}
  static bool begin(const c10::Stream& stream, std::string& reason);
  static std::unique_ptr<CudaGraph> end(const c10::Stream& stream, std::string& reason);

  void* executable_;
};

}  // namespace hybrid_rt::tensorrt
