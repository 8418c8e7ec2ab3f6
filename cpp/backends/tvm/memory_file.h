#pragma once

#include <ATen/core/Tensor.h>

#include <string>

namespace hybrid_rt::tvm {

/// A shared library in memory, with a path that dlopen takes: nothing is left on disk, however the process ends.
class MemoryFile {
 public:
  /// Copies `bytes`. Throws Error(kBackend).
  explicit MemoryFile(const at::Tensor& bytes);
  MemoryFile(const MemoryFile&) = delete;
  MemoryFile& operator=(const MemoryFile&) = delete;
  /// Gives the memory back, unless the library is still loaded.
  ~MemoryFile();

  const std::string& path() const { return path_; }

 private:
  int descriptor_;
  std::string path_;
};

}  // namespace hybrid_rt::tvm
