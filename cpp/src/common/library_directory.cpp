#include "common/library_directory.h"

#include "common/platform/shared_library.h"

namespace hybrid_rt {

std::filesystem::path library_directory(Links links) {
  const std::filesystem::path own = platform::library_of(reinterpret_cast<const void*>(&library_directory));
  if (own.empty()) return {};
  std::error_code failed;
  const std::filesystem::path file =
      links == Links::kFollowed ? std::filesystem::canonical(own, failed) : std::filesystem::absolute(own, failed);
  return failed ? std::filesystem::path() : file.parent_path();
}

}  // namespace hybrid_rt
