#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/DeviceType.h>

#include <memory>
#include <string>

#include "hybrid_rt/plugin/library_file.h"

namespace hybrid_rt::aot_inductor {

/// The in-memory file of the library with this digest, shared by all engines of that library. Inductor's libraries have
/// unique symbols (GCC's for inline variables), so the linker never unloads them, and every further copy would stay
/// too.
class SharedLibraryFile {
 public:
  /// Throws Error(kBackend) if the system can't create such a file.
  SharedLibraryFile(std::string digest, const at::Tensor& bytes);
  SharedLibraryFile(const SharedLibraryFile&) = delete;
  SharedLibraryFile& operator=(const SharedLibraryFile&) = delete;
  /// The last owner frees the memory, unless the library is still loaded.
  ~SharedLibraryFile();

  const std::string& path() const { return file_->path(); }

 private:
  std::string digest_;
  std::shared_ptr<const LibraryFile> file_;
};

/// Lets a library that declares no dependencies find torch's functions for a kind of device, and for CUDA also those of
/// NVIDIA's runtime that torch uses. Throws Error(kBackend).
void make_torch_visible(c10::DeviceType device);

}  // namespace hybrid_rt::aot_inductor
