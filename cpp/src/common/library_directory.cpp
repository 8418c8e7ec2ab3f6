#include "common/library_directory.h"

#include <dlfcn.h>

namespace hybrid_rt {

std::filesystem::path library_directory(Links links) {
  Dl_info info{};
  if (dladdr(reinterpret_cast<const void*>(&library_directory), &info) == 0 || info.dli_fname == nullptr) return {};
  std::error_code failed;
  const std::filesystem::path file = links == Links::kFollowed ? std::filesystem::canonical(info.dli_fname, failed)
                                                               : std::filesystem::absolute(info.dli_fname, failed);
  return failed ? std::filesystem::path() : file.parent_path();
}

}  // namespace hybrid_rt
