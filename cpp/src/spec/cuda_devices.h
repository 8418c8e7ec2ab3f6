#pragma once

#include <string>
#include <vector>

#include "hybrid_rt/machine.h"

namespace hybrid_rt {

/// The CUDA devices of this process, or why there are none.
struct CudaDevices {
  std::vector<CudaDevice> devices;
  std::string reason;
};

/// As NVIDIA's driver tells; asked once a process, without a CUDA context and without torch.
const CudaDevices& cuda_devices();

}  // namespace hybrid_rt
