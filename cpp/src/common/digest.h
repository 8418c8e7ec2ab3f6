#pragma once

#include <cstddef>
#include <string>

namespace hybrid_rt {

/// Returns the SHA-256 (FIPS 180-4) in lower-case hexadecimal.
std::string sha256(const void* data, size_t size);

}  // namespace hybrid_rt
