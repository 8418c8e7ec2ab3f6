#pragma once

#include <ATen/core/Tensor.h>

#include <string>

namespace hybrid_rt {

/// A shared library as a file in memory, with a path for dlopen. Nothing stays on disk, however the process ends.
///
/// The path contains the number of a descriptor, which stays open as long as the library is loaded, even after this
/// object is destroyed. Code other than dlopen also opens loaded libraries by their paths: TVM reads their debug
/// information when it is imported, and ended the process (SIGBUS) when the descriptor's number had been reused for an
/// empty file.
class LibraryFile {
 public:
  /// Copies `bytes`. Throws Error(kBackend), with `backend` as its scope, if the system can't create such a file.
  LibraryFile(const std::string& backend, const at::Tensor& bytes);
  LibraryFile(const LibraryFile&) = delete;
  LibraryFile& operator=(const LibraryFile&) = delete;
  /// Releases the memory, unless the library is still loaded.
  ~LibraryFile();

  const std::string& path() const { return path_; }  ///< Returns the path for dlopen.
  /// Returns true if the library is loaded. It may stay loaded after dlclose, for instance if it has unique symbols.
  bool is_loaded() const;

 private:
  int descriptor_;
  std::string path_;
};

}  // namespace hybrid_rt
