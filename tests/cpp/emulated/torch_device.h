#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/Stream.h>

#include "gpu.h"

// The emulated GPU as a device of torch, of its kind PrivateUse1 under the name "cuda": memory, streams, events and the
// few operators that a plug-in's interface needs. All other operators run on the CPU. Linking it registers it. If
// HYBRID_RT_TEST_GPU_ENGINES is set and HYBRID_RT_TEST_GPU_REHEARSAL is not, a CUDA device takes its place.

namespace emulated {

constexpr c10::DeviceType kDevice = c10::DeviceType::PrivateUse1;

/// Returns true if a CUDA device replaces the emulated one.
bool is_cuda();
c10::Device torch_device(int index = 0);
/// Returns a stream that no other caller of this function has.
c10::Stream new_torch_stream(int device = 0);
Stream* stream_of(const c10::Stream& stream);

}  // namespace emulated
