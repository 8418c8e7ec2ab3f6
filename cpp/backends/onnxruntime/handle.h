#pragma once

#include <memory>

#include "library.h"

namespace hybrid_rt::onnxruntime {

/// Frees the object of a C handle.
struct Release {
  static const Functions& functions() { return Library::instance().functions(); }
  void operator()(MemoryInfo* handle) const { functions().ReleaseMemoryInfo(handle); }
  void operator()(Session* handle) const { functions().ReleaseSession(handle); }
  void operator()(Value* handle) const { functions().ReleaseValue(handle); }
  void operator()(TypeAndShape* handle) const { functions().ReleaseTensorTypeAndShapeInfo(handle); }
  void operator()(SessionOptions* handle) const { functions().ReleaseSessionOptions(handle); }
  void operator()(CudaOptions* handle) const { functions().ReleaseCUDAProviderOptions(handle); }
  void operator()(TensorRtOptions* handle) const { functions().ReleaseTensorRTProviderOptions(handle); }
};
template <typename T>
using Handle = std::unique_ptr<T, Release>;

}  // namespace hybrid_rt::onnxruntime
