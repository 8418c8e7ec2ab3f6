#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <system_error>

#include "common/platform/regular_file.h"

namespace hybrid_rt::platform {

RegularFile open_regular_file(const std::string& path) {
  RegularFile opened;
  // O_NONBLOCK, because open() would wait if the path is a pipe without a writer.
  opened.descriptor = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (opened.descriptor < 0) {
    opened.failure = std::generic_category().message(errno);
    return opened;
  }
  struct stat found{};
  if (::fstat(opened.descriptor, &found) != 0 || !S_ISREG(found.st_mode)) {
    ::close(opened.descriptor);
    return {-1, 0, "no regular file"};
  }
  opened.size = static_cast<std::uint64_t>(found.st_size);
  return opened;
}

std::ptrdiff_t read_at(int descriptor, void* into, std::size_t count, std::uint64_t position, std::string& failure) {
  for (;;) {
    const ssize_t got = ::pread(descriptor, into, count, static_cast<off_t>(position));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) failure = std::generic_category().message(errno);
    return got;
  }
}

void close_file(int descriptor) { ::close(descriptor); }

}  // namespace hybrid_rt::platform
