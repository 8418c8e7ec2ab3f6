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

/// Never destroyed: engines may outlive our statics.
Files& files() {
  static Files* const files = new Files();
  return *files;
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

void make_torch_visible() {
  // Python loads libtorch_cpu for itself alone; a C++ program has it for all. Not loaded again, only made visible.
  static void* const torch = dlopen("libtorch_cpu.so", RTLD_NOW | RTLD_GLOBAL | RTLD_NOLOAD);
  if (torch == nullptr) {
    const char* reason = dlerror();
    throw Error(ErrorKind::kBackend, "aot_inductor", "artifact", "torch's library libtorch_cpu.so in this process",
                reason ? reason : "none", "Link the program with torch's shared libraries.");
  }
}

}  // namespace hybrid_rt::aot_inductor
