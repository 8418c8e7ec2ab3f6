#include "hybrid_rt/plugin/vendor_library.h"

#include <cstdlib>
#include <filesystem>

#include "common/library_directory.h"
#include "common/platform/shared_library.h"
#include "hybrid_rt/error.h"

namespace hybrid_rt {
namespace {

namespace fs = std::filesystem;

}  // namespace

std::vector<std::string> VendorLibrary::candidates() const {
  if (const char* named = std::getenv(search_.variable.c_str())) return {named};
  std::vector<std::string> found;
  // Symbolic links are not followed, because an installer that links each file into site-packages keeps the packages'
  // real files apart.
  if (const fs::path own = library_directory(Links::kAsLoaded); !own.empty()) {
    std::error_code failed;
    for (const auto& entry : fs::directory_iterator(own / ".." / ".." / search_.folder, failed)) {
      if (entry.path().filename().string().rfind(search_.prefix, 0) == 0) {
        found.push_back(fs::weakly_canonical(entry.path(), failed).string());
      }
    }
  }
  found.insert(found.end(), search_.names.begin(), search_.names.end());
  return found;
}

std::string VendorLibrary::open(const std::function<std::string(const std::string& path)>& prepare) {
  std::string tried;
  for (const std::string& path : candidates()) {
    std::string failure = prepare ? prepare(path) : "";
    if (failure.empty()) {
      handle_ = platform::open_library(path, platform::Symbols::kForCaller);
      if (handle_ != nullptr) {
        path_ = path;
        return "";
      }
      failure = platform::library_failure();
    }
    tried += (tried.empty() ? "" : "; ") + failure;
  }
  return search_.name + " can't be opened (" + tried + "). " + install();
}

std::string VendorLibrary::lacks(const std::string& function) const {
  return search_.name + " lacks " + function + ". Upgrade it: pip install -U " + search_.package + ".";
}

Availability VendorLibrary::availability(std::vector<std::string> devices) const {
  if (!is_open()) return {.available = false, .reason = reason_, .version = "", .devices = {}};
  return {.available = true, .reason = "", .version = version_, .devices = std::move(devices)};
}

void VendorLibrary::require_open(const std::string& expected) const {
  if (is_open()) return;
  throw Error(ErrorKind::kBackend, search_.backend, "library", expected, reason_, "");
}

}  // namespace hybrid_rt
