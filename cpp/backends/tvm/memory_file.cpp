#include "memory_file.h"

#include <dlfcn.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "hybrid_rt/error.h"

namespace hybrid_rt::tvm {

MemoryFile::MemoryFile(const at::Tensor& bytes) : descriptor_(memfd_create("hybrid_rt_tvm", MFD_CLOEXEC)) {
  const char* data = static_cast<const char*>(bytes.const_data_ptr());
  size_t left = bytes.nbytes();
  while (descriptor_ >= 0 && left > 0) {
    const ssize_t written = write(descriptor_, data, left);
    if (written < 0 && errno == EINTR) continue;
    if (written <= 0) break;
    data += written;
    left -= static_cast<size_t>(written);
  }
  if (descriptor_ < 0 || left > 0) {
    const std::string reason = std::strerror(errno);
    if (descriptor_ >= 0) close(descriptor_);
    throw Error(ErrorKind::kBackend, "tvm", "artifact", std::to_string(bytes.nbytes()) + " bytes in a file in memory",
                reason, "Free some memory, or raise the limit on open files.");
  }
  path_ = "/proc/self/fd/" + std::to_string(descriptor_);
}

MemoryFile::~MemoryFile() {
  // dlopen knows a loaded library by its path. Closed while it is loaded, the number would go to another file, and that
  // one's path would give this library.
  if (void* loaded = dlopen(path_.c_str(), RTLD_LAZY | RTLD_NOLOAD)) {
    dlclose(loaded);
    return;
  }
  close(descriptor_);
}

}  // namespace hybrid_rt::tvm
