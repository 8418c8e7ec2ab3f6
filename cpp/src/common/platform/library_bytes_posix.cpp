#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "common/platform/library_bytes.h"

namespace hybrid_rt::platform {

LibraryBytes write_library(const std::string& name, const void* bytes, std::size_t size) {
  LibraryBytes made;
  made.descriptor = memfd_create(name.c_str(), MFD_CLOEXEC);
  const auto* next = static_cast<const char*>(bytes);
  while (made.descriptor >= 0 && size > 0) {
    const ssize_t written = write(made.descriptor, next, size);
    if (written < 0 && errno == EINTR) continue;
    if (written <= 0) break;
    next += written;
    size -= static_cast<std::size_t>(written);
  }
  if (made.descriptor < 0 || size > 0) {
    made.failure = std::strerror(errno);
    if (made.descriptor >= 0) close(made.descriptor);
    made.descriptor = -1;
    return made;
  }
  made.path = "/proc/self/fd/" + std::to_string(made.descriptor);
  return made;
}

void remove_library(int descriptor, const std::string& /*path*/) { close(descriptor); }

}  // namespace hybrid_rt::platform
