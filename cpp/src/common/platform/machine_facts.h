#pragma once

#include <cstdint>
#include <set>
#include <string>

namespace hybrid_rt::platform {

/// Returns the instruction sets of the CPU that programs can use, by the names of Linux: "avx2", "avx512f", "asimd".
std::set<std::string> cpu_flags();

/// Returns the bytes of memory that a program can have without others losing theirs; 0 if that is not known.
std::int64_t free_memory();

/// Returns the name that the CPU gives itself, such as "AMD EPYC 9B14"; "unknown" if it has none.
std::string processor_name();

/// Returns the CPU's architecture by the name that Linux has for it: "x86_64", "aarch64"; "unknown" if it is another.
std::string architecture();

/// Returns the number of logical CPUs that this process may run on; 0 if that is not known.
std::int64_t usable_cpus();

}  // namespace hybrid_rt::platform
