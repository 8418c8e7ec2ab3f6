#pragma once

// Compilation of the operators' arithmetic. Include it after all foreign headers and before the first own header with
// arithmetic, because the pragmas apply to the rest of the file.

// One binary serves old and new CPUs: the loader selects the clone. Neither "arch=x86-64-v3" nor AVX-512, because both
// include fused multiply-add, which rounds differently from torchvision.
#if defined(__x86_64__) && defined(__gnu_linux__) && defined(__GNUC__) && !defined(__SANITIZE_THREAD__)
#define HYBRID_RT_CLONES __attribute__((target_clones("avx2", "default")))
#else
#define HYBRID_RT_CLONES
#endif

// Disables contraction for CPUs whose baseline includes it.
#if defined(__clang__)
#pragma clang fp contract(off)
#elif defined(__GNUC__)
#pragma GCC optimize("fp-contract=off")
#endif
