#include "bundle/file_bytes.h"

#include "common/platform/regular_file.h"
#include "hybrid_rt/error.h"

namespace hybrid_rt {
namespace {

Error no_file(const std::string& path, const std::string& got) {
  return Error(ErrorKind::kBundle, "bundle", path, "a file", got, "Check the path.");
}

}  // namespace

FileBytes::FileBytes(const std::string& path) : path_(path) {
  const platform::RegularFile opened = platform::open_regular_file(path);
  if (opened.descriptor < 0) throw no_file(path, opened.failure);
  descriptor_ = opened.descriptor;
  size_ = static_cast<size_t>(opened.size);
}

FileBytes::~FileBytes() { platform::close_file(descriptor_); }

size_t FileBytes::read(uint64_t position, void* into, size_t count, const char* /*what*/) const {
  size_t done = 0;
  while (done < count) {
    std::string failure;
    const std::ptrdiff_t got =
        platform::read_at(descriptor_, static_cast<char*>(into) + done, count - done, position + done, failure);
    if (got <= 0) {
      throw Error(ErrorKind::kBundle, "bundle", path_, "to read " + std::to_string(count) + " bytes",
                  got < 0 ? failure : "the end of the file", "The file was cut off or damaged: copy it again.");
    }
    done += static_cast<size_t>(got);
  }
  return done;
}

}  // namespace hybrid_rt
