#pragma once

#include <c10/core/Device.h>

namespace hybrid_rt {

/// Waits until a device has finished its work; a GPU's continues after a call. Throws c10::Error for a lost device.
void wait_for(c10::Device device);

}  // namespace hybrid_rt
