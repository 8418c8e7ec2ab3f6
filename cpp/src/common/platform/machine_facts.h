#pragma once

#include <cstdint>
#include <set>
#include <string>

namespace hybrid_rt::platform {

/// Returns the CPU's usable instruction sets by Linux's names: "avx2", "avx512f", "asimd".
std::set<std::string> cpu_flags();

/// Returns the bytes of memory that a program can allocate without affecting others; 0 if unknown.
std::int64_t free_memory();

/// Returns the CPU's name, such as "AMD EPYC 9B14"; "unknown" if it has none.
std::string processor_name();

/// Returns the CPU's architecture by Linux's name: "x86_64", "aarch64"; "unknown" for others.
std::string architecture();

/// Returns the number of logical CPUs that this process may run on; 0 if unknown.
std::int64_t usable_cpus();

}  // namespace hybrid_rt::platform
