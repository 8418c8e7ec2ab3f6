#pragma once

#include <ATen/core/Tensor.h>

#include <string>

namespace hybrid_rt::aot_inductor {

/// A shared object's bytes as a file in memory, which dlopen can open; nothing is on disk. The file lives as long as
/// this object or a mapping of it does.
class LibraryFile {
 public:
  /// Throws Error(kBackend) where the system gives no such file.
  explicit LibraryFile(const at::Tensor& bytes);
  LibraryFile(const LibraryFile&) = delete;
  LibraryFile& operator=(const LibraryFile&) = delete;
  ~LibraryFile();

  /// A path that no other library of this process was ever opened by.
  const std::string& path() const { return path_; }

 private:
  int descriptor_;
  std::string path_;
};

/// Lets a library that names none of its dependencies find torch's functions. Throws Error(kBackend).
void make_torch_visible();

}  // namespace hybrid_rt::aot_inductor
