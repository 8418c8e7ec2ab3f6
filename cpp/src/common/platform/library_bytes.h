#pragma once

#include <cstddef>
#include <string>

namespace hybrid_rt::platform {

/// A file with a shared library's bytes, which exists as long as the library may be loaded.
struct LibraryBytes {
  int descriptor = -1;  ///< negative if there is no such file, because of `failure`
  std::string path;     ///< path for open_library()
  std::string failure;
};

/// Copies the bytes into a file. On Linux it is in memory and leaves nothing behind, however the process ends. Windows
/// loads libraries only from disk: there it is in the directory for temporary files, and leftovers of earlier processes
/// are removed first.
/// @param name name of the file in the system's lists, a plain word
LibraryBytes write_library(const std::string& name, const void* bytes, std::size_t size);

/// Removes the file. Must not be called while the library is loaded.
void remove_library(int descriptor, const std::string& path);

}  // namespace hybrid_rt::platform
