#pragma once

#include <c10/core/Device.h>

#include "hybrid_rt/devices.h"

namespace hybrid_rt {

/// "cuda" as the current device of this thread, "cuda:0"; others as they are. Tensors' devices always have an index.
/// Throws Error(kOption) where torch can't use the driver that is there.
c10::Device with_index(c10::Device device);

/// Finds out whether this process can use a device, and makes torch able to: a C++ program links libtorch_cpu only, so
/// that one binary serves machines with and without CUDA. Throws Error(kOption).
void require_device(c10::Device device);

}  // namespace hybrid_rt
