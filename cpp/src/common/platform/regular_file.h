#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace hybrid_rt::platform {

/// A file that is open for reading.
struct RegularFile {
  int descriptor = -1;  ///< negative: it can't be opened, for `failure`
  std::uint64_t size = 0;
  std::string failure;
};

/// Opens a file; refuses directories, pipes and devices, and never waits for one.
RegularFile open_regular_file(const std::string& path);

/// Reads up to `count` bytes at a position; calls may run side by side.
///
/// @return how many bytes were read, 0 at the end of the file; negative if it failed, for `failure`
std::ptrdiff_t read_at(int descriptor, void* into, std::size_t count, std::uint64_t position, std::string& failure);

void close_file(int descriptor);

}  // namespace hybrid_rt::platform
