#include "hybrid_rt/plugin/library_file.h"

#include <dlfcn.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "hybrid_rt/error.h"

namespace hybrid_rt {

LibraryFile::LibraryFile(const std::string& backend, const at::Tensor& bytes)
    : descriptor_(memfd_create(("hybrid_rt_" + backend).c_str(), MFD_CLOEXEC)) {
  const auto* next = static_cast<const char*>(bytes.const_data_ptr());
  size_t left = bytes.nbytes();
  while (descriptor_ >= 0 && left > 0) {
    const ssize_t written = write(descriptor_, next, left);
    if (written < 0 && errno == EINTR) continue;
    if (written <= 0) break;
    next += written;
    left -= static_cast<size_t>(written);
  }
  if (descriptor_ < 0 || left > 0) {
    const std::string reason = std::strerror(errno);
    if (descriptor_ >= 0) close(descriptor_);
    throw Error(ErrorKind::kBackend, backend, "artifact", std::to_string(bytes.nbytes()) + " bytes in a file in memory",
                reason, "Free some memory, or raise the limit on open files.");
  }
  path_ = "/proc/self/fd/" + std::to_string(descriptor_);
}

LibraryFile::~LibraryFile() {
  if (!is_loaded()) close(descriptor_);
}

bool LibraryFile::is_loaded() const {
  void* const loaded = dlopen(path_.c_str(), RTLD_LAZY | RTLD_NOLOAD);
  if (loaded == nullptr) return false;
  dlclose(loaded);
  return true;
}

}  // namespace hybrid_rt
