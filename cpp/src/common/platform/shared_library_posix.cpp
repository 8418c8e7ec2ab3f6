#include <dlfcn.h>

#include "common/platform/shared_library.h"

namespace hybrid_rt::platform {

void* open_library(const std::string& path, Symbols symbols) {
  return dlopen(path.c_str(), RTLD_NOW | (symbols == Symbols::kForProcess ? RTLD_GLOBAL : RTLD_LOCAL));
}

bool is_library_loaded(const std::string& path) {
  void* const loaded = dlopen(path.c_str(), RTLD_LAZY | RTLD_NOLOAD);
  if (loaded == nullptr) return false;
  dlclose(loaded);
  return true;
}

void* find_symbol(void* library, const char* name) { return dlsym(library, name); }

std::string library_failure() {
  const char* const reason = dlerror();
  return reason != nullptr ? reason : "no reason is known";
}

std::filesystem::path library_of(const void* address) {
  Dl_info info{};
  if (dladdr(address, &info) == 0 || info.dli_fname == nullptr) return {};
  return info.dli_fname;
}

}  // namespace hybrid_rt::platform
