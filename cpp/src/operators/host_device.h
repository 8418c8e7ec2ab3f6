#pragma once

// Annotations for code that CPUs and GPUs share; free of torch and CUDA. Its arithmetic must not be contracted to fused
// multiply-add, which rounds differently: include it after the pragmas that forbid that, or compile with the
// corresponding option (CUDA: -fmad=false).

#if defined(__CUDACC__)
#define HYBRID_RT_HOST_DEVICE __host__ __device__
#else
#define HYBRID_RT_HOST_DEVICE
#endif
