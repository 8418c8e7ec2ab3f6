#include "bundle/file_bytes.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <system_error>

#include "hybrid_rt/error.h"

namespace hybrid_rt {
namespace {

Error no_file(const std::string& path, const std::string& got) {
  return Error(ErrorKind::kBundle, "bundle", path, "a file", got, "Check the path.");
}

}  // namespace

FileBytes::FileBytes(const std::string& path)
    // Without waiting, as open() does where the path is a pipe that nobody writes to.
    : path_(path), descriptor_(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK)) {
  if (descriptor_ < 0) throw no_file(path, std::generic_category().message(errno));
  struct stat found{};
  if (::fstat(descriptor_, &found) != 0 || !S_ISREG(found.st_mode)) {
    ::close(descriptor_);
    throw no_file(path, "no regular file");
  }
  size_ = static_cast<size_t>(found.st_size);
}

FileBytes::~FileBytes() { ::close(descriptor_); }

size_t FileBytes::read(uint64_t position, void* into, size_t count, const char* /*what*/) const {
  size_t done = 0;
  while (done < count) {
    const ssize_t got =
        ::pread(descriptor_, static_cast<char*>(into) + done, count - done, static_cast<off_t>(position + done));
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) {
      throw Error(ErrorKind::kBundle, "bundle", path_, "to read " + std::to_string(count) + " bytes",
                  got < 0 ? std::generic_category().message(errno) : "the end of the file",
                  "The file was cut off or damaged: copy it again.");
    }
    done += static_cast<size_t>(got);
  }
  return done;
}

}  // namespace hybrid_rt
