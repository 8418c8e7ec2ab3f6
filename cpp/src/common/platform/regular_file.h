#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace hybrid_rt::platform {

/// A file that was opened for reading.
struct RegularFile {
  int descriptor = -1;  ///< negative if it can't be opened, because of `failure`
  std::uint64_t size = 0;
  std::string failure;
};

/// Opens a file. Refuses directories, pipes and devices, and never waits for one.
RegularFile open_regular_file(const std::string& path);

/// Reads up to `count` bytes at a position. Calls may be concurrent.
/// @return the number of bytes that were read, 0 at the end of the file; negative on failure, because of `failure`
std::ptrdiff_t read_at(int descriptor, void* into, std::size_t count, std::uint64_t position, std::string& failure);

void close_file(int descriptor);

}  // namespace hybrid_rt::platform
