#pragma once

#include <cstdint>
#include <set>
#include <string>

namespace hybrid_rt::platform {

/// Returns the instruction sets of the CPU that programs can use, by the names of Linux: "avx2", "avx512f", "asimd".
std::set<std::string> cpu_flags();

/// Returns the bytes of memory that a program can have without others losing theirs; 0 if that is not known.
std::int64_t free_memory();

}  // namespace hybrid_rt::platform
