#include "library.h"

#include <dlfcn.h>

#include <map>
#include <mutex>
#include <utility>

#include "hybrid_rt/error.h"

namespace hybrid_rt::aot_inductor {
namespace {

struct Files {
  std::mutex mutex;
  std::map<std::string, std::shared_ptr<const LibraryFile>> by_digest;
};

/// Never destroyed, because engines may outlive static objects.
Files& files() {
  static Files* const files = new Files();
  return *files;
}

/// Makes the symbols of a loaded library, and of its dependencies, globally visible. A C++ program has libtorch_cpu's
/// already, but Python loads torch's libraries with local symbols.
void make_visible(const char* library, const char* remedy) {
  if (dlopen(library, RTLD_NOW | RTLD_GLOBAL | RTLD_NOLOAD) != nullptr) return;
  const char* reason = dlerror();
  throw Error(ErrorKind::kBackend, "aot_inductor", "artifact",
              std::string("torch's library ") + library + " in this process", reason ? reason : "none", remedy);
}

}  // namespace

SharedLibraryFile::SharedLibraryFile(std::string digest, const at::Tensor& bytes) : digest_(std::move(digest)) {
  const std::lock_guard lock(files().mutex);
  auto& file = files().by_digest[digest_];
  if (!file) file = std::make_shared<LibraryFile>("aot_inductor", bytes);
  file_ = file;
}

SharedLibraryFile::~SharedLibraryFile() {
  const std::lock_guard lock(files().mutex);
  file_.reset();
  const auto found = files().by_digest.find(digest_);
  if (found->second.use_count() == 1 && !found->second->is_loaded()) files().by_digest.erase(found);
}

void make_torch_visible(c10::DeviceType device) {
  make_visible("libtorch_cpu.so", "Link the program with torch's shared libraries.");
  if (device == c10::DeviceType::CUDA) {
    make_visible("libtorch_cuda.so", "Load the bundle for this device with hybrid_rt::load, which opens it.");
  }
}

}  // namespace hybrid_rt::aot_inductor
