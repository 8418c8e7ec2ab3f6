#include "operators/cuda_operators.h"

// A library of CUDA operators like that of another version of hybrid_rt.

extern "C" __attribute__((visibility("default"))) const hybrid_rt::operators::CudaOperators*
hybrid_rt_cuda_operators() {
  static const hybrid_rt::operators::CudaOperators operators{0, "2.0", nullptr, nullptr};
  return &operators;
}
