#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/Stream.h>

#include "gpu.h"

// The emulated GPU as a device of torch's, of its kind PrivateUse1 by the name "cuda": memory, streams, events and the
// few operators that a plug-in's edge needs; all others run on the CPU. It is registered by being linked.
// Where HYBRID_RT_TEST_GPU_ENGINES is set, and HYBRID_RT_TEST_GPU_REHEARSAL is not, a CUDA device stands in its place.

namespace emulated {

constexpr c10::DeviceType kDevice = c10::DeviceType::PrivateUse1;

/// Tells whether a CUDA device is in the emulated one's place.
bool is_cuda();
c10::Device torch_device(int index = 0);
/// One that no other caller of this function has.
c10::Stream new_torch_stream(int device = 0);
Stream* stream_of(const c10::Stream& stream);

}  // namespace emulated
