#pragma once

// For code that processors and GPUs share. Free of torch and of CUDA. Its arithmetic must not be contracted to fused
// multiply-add, which rounds otherwise: include it after the pragmas that forbid that, or compile with the option
// (CUDA: -fmad=false).

#if defined(__CUDACC__)
#define HYBRID_RT_HOST_DEVICE __host__ __device__
#else
#define HYBRID_RT_HOST_DEVICE
#endif
