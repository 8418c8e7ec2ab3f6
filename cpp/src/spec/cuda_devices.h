#pragma once

#include <string>
#include <vector>

#include "hybrid_rt/machine.h"

namespace hybrid_rt {

/// The CUDA devices of this process, or the reason why there are none.
struct CudaDevices {
  std::vector<CudaDevice> devices;
  std::string reason;
};

/// Returns what NVIDIA's driver reports. It is queried once per process, without a CUDA context and without torch.
const CudaDevices& cuda_devices();

}  // namespace hybrid_rt
