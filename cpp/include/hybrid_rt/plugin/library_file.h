#pragma once

#include <ATen/core/Tensor.h>

#include <string>

namespace hybrid_rt {

/// A shared library's bytes as a file in memory, with a path that dlopen takes: nothing is left on disk, however the
/// process ends.
///
/// The path is that of a descriptor, and stays this file's for as long as the library is loaded, also beyond this
/// object. Others than dlopen open loaded libraries by their paths: TVM, for one, reads their debug information when it
/// is imported, and ended the process (SIGBUS) where the descriptor's number had gone to an empty file.
class LibraryFile {
 public:
  /// Copies `bytes`. Throws Error(kBackend), in the name of `backend`, if the system provides no such file.
  LibraryFile(const std::string& backend, const at::Tensor& bytes);
  LibraryFile(const LibraryFile&) = delete;
  LibraryFile& operator=(const LibraryFile&) = delete;
  /// Releases the memory, unless the library is still loaded.
  ~LibraryFile();

  const std::string& path() const { return path_; }  ///< Returns the path for dlopen.
  /// Returns true if the library is loaded. It may stay loaded after dlclose, for instance for its unique symbols.
  bool is_loaded() const;

 private:
  int descriptor_;
  std::string path_;
};

}  // namespace hybrid_rt
