#pragma once

#include <c10/core/Device.h>

#include "hybrid_rt/devices.h"

namespace hybrid_rt {

/// Returns "cuda" with the index of this thread's current device, such as "cuda:0", and other devices unchanged.
/// Tensors' devices always have an index. Throws Error(kOption) if torch can't use the installed driver.
c10::Device with_index(c10::Device device);

/// Checks that this process can use a device, and opens libtorch_cuda if needed: a C++ program links only libtorch_cpu,
/// so that one binary serves machines with and without CUDA. Throws Error(kOption).
void require_device(c10::Device device);

}  // namespace hybrid_rt
