#pragma once

#include <c10/core/Device.h>

namespace hybrid_rt {

/// Waits until a device is done: a GPU's work goes on after the call.
void wait_for(c10::Device device);

}  // namespace hybrid_rt
