#include "library.h"

#include <dlfcn.h>
#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstring>

#include "hybrid_rt/error.h"

namespace hybrid_rt::aot_inductor {
namespace {

Error failed(const std::string& expected, const std::string& got, const std::string& remedy) {
  return Error(ErrorKind::kBackend, "aot_inductor", "artifact", expected, got, remedy);
}

/// dlopen knows a loaded library by the text of its path, and a library that has gone from the program's view can
/// stay loaded (unique symbols keep it): "/proc/self/fd/7" again would silently give the library that had the number 7
/// before. So the path has a number of its own, in binary: "./" and "/" both stay in the folder.
std::string unique_path(int descriptor) {
  static std::atomic<uint64_t> count{0};
  std::string path = "/proc/self/fd/";
  for (uint64_t rest = ++count; rest != 0; rest /= 2) path += rest % 2 ? "./" : "/";
  return path + std::to_string(descriptor);
}

}  // namespace

LibraryFile::LibraryFile(const at::Tensor& bytes) : descriptor_(memfd_create("hybrid_rt", MFD_CLOEXEC)) {
  if (descriptor_ < 0) {
    throw failed("a file in memory (memfd_create)", std::strerror(errno), "Is the process out of file descriptors?");
  }
  const auto* next = bytes.const_data_ptr<uint8_t>();
  auto remaining = static_cast<size_t>(bytes.numel());
  while (remaining > 0) {
    const ssize_t written = write(descriptor_, next, remaining);
    if (written < 0 && errno == EINTR) continue;
    if (written <= 0) {
      const std::string reason = std::strerror(errno);
      close(descriptor_);
      throw failed("room for " + std::to_string(bytes.numel()) + " bytes in memory", reason,
                   "Load fewer bundles at once, or give the process more memory.");
    }
    next += written;
    remaining -= static_cast<size_t>(written);
  }
  path_ = unique_path(descriptor_);
}

LibraryFile::~LibraryFile() { close(descriptor_); }

void make_torch_visible() {
  // Python loads libtorch_cpu for itself alone; a C++ program has it for all. Not loaded again, only made visible.
  static void* const torch = dlopen("libtorch_cpu.so", RTLD_NOW | RTLD_GLOBAL | RTLD_NOLOAD);
  if (torch == nullptr) {
    const char* reason = dlerror();
    throw failed("torch's library libtorch_cpu.so in this process", reason ? reason : "none",
                 "Link the program with torch's shared libraries.");
  }
}

}  // namespace hybrid_rt::aot_inductor
