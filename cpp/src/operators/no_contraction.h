#pragma once

// How the operators' arithmetic is compiled. To be included after all headers of others and before the first header
// with arithmetic of ours: the pragmas hold for what follows them in the file.

// One binary serves old and new processors: the loader picks the clone. Not "arch=x86-64-v3" nor AVX-512: both bring
// fused multiply-add, which rounds otherwise than torchvision does.
#if defined(__x86_64__) && defined(__gnu_linux__) && defined(__GNUC__) && !defined(__SANITIZE_THREAD__)
#define HYBRID_RT_CLONES __attribute__((target_clones("avx2", "default")))
#else
#define HYBRID_RT_CLONES
#endif

// The same for processors whose baseline has it.
#if defined(__clang__)
#pragma clang fp contract(off)
#elif defined(__GNUC__)
#pragma GCC optimize("fp-contract=off")
#endif
