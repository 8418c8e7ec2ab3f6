#include "common/library_directory.h"

#include <dlfcn.h>

namespace hybrid_rt {

std::filesystem::path library_directory() {
  Dl_info info{};
  if (dladdr(reinterpret_cast<const void*>(&library_directory), &info) == 0 || info.dli_fname == nullptr) return {};
  std::error_code failed;
  const std::filesystem::path resolved = std::filesystem::canonical(info.dli_fname, failed);
  return failed ? std::filesystem::path() : resolved.parent_path();
}

}  // namespace hybrid_rt
