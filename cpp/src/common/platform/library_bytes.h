#pragma once

#include <cstddef>
#include <string>

namespace hybrid_rt::platform {

/// A file that holds a shared library's bytes for as long as it may be loaded.
struct LibraryBytes {
  int descriptor = -1;  ///< negative: there is no such file, for `failure`
  std::string path;     ///< which open_library() takes
  std::string failure;
};

/// Copies the bytes into a file. On Linux it is in memory and leaves nothing behind, however the process ends. Windows
/// loads libraries from disk only: there it is in the directory for temporary files, and what an earlier process left
/// there is removed first.
///
/// @param name how the file is called in the system's lists, a plain word
LibraryBytes write_library(const std::string& name, const void* bytes, std::size_t size);

/// Gives the file back. Not to be called while the library is loaded.
void remove_library(int descriptor, const std::string& path);

}  // namespace hybrid_rt::platform
