#include "hybrid_rt/plugin/library_file.h"

#include "common/platform/library_bytes.h"
#include "common/platform/shared_library.h"
#include "hybrid_rt/error.h"

namespace hybrid_rt {

LibraryFile::LibraryFile(const std::string& backend, const at::Tensor& bytes) {
  platform::LibraryBytes made = platform::write_library("hybrid_rt_" + backend, bytes.const_data_ptr(), bytes.nbytes());
  if (made.descriptor < 0) {
    throw Error(ErrorKind::kBackend, backend, "artifact", std::to_string(bytes.nbytes()) + " bytes in a file in memory",
                made.failure, "Free some memory, or raise the limit on open files.");
  }
  descriptor_ = made.descriptor;
  path_ = std::move(made.path);
}

LibraryFile::~LibraryFile() {
  if (!is_loaded()) platform::remove_library(descriptor_, path_);
}

bool LibraryFile::is_loaded() const { return platform::is_library_loaded(path_); }

}  // namespace hybrid_rt
