#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/DeviceType.h>

#include <memory>
#include <string>

#include "hybrid_rt/plugin/library_file.h"

namespace hybrid_rt::aot_inductor {

/// The file in memory of the library with that digest, one for all engines that are made of it: what inductor compiles
/// has unique symbols (GCC's for inline variables), so the linker never unloads it, and each other copy would stay too.
class SharedLibraryFile {
 public:
  /// Throws Error(kBackend) where the system gives no such file.
  SharedLibraryFile(std::string digest, const at::Tensor& bytes);
  SharedLibraryFile(const SharedLibraryFile&) = delete;
  SharedLibraryFile& operator=(const SharedLibraryFile&) = delete;
  /// The last one gives the memory back, unless the library is still loaded.
  ~SharedLibraryFile();

  const std::string& path() const { return file_->path(); }

 private:
  std::string digest_;
  std::shared_ptr<const LibraryFile> file_;
};

/// Lets a library that names none of its dependencies find torch's functions for a kind of device, and for CUDA those
/// of NVIDIA's runtime that torch uses. Throws Error(kBackend).
void make_torch_visible(c10::DeviceType device);

}  // namespace hybrid_rt::aot_inductor
