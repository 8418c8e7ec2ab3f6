#include "runtime_cache.h"

#include <unistd.h>

#include <atomic>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <system_error>

namespace hybrid_rt::tensorrt {
namespace {

namespace fs = std::filesystem;

std::string variable(const char* name) {
  const char* const value = std::getenv(name);
  return value != nullptr ? value : "";
}

/// Returns the directory that hybrid_rt/backends/cache/directory.py defines; empty if there is none, or if the cache is
/// off.
fs::path cache_directory() {
  if (variable("HYBRID_RT_CACHE_SIZE") == "0") return {};
  if (const std::string named = variable("HYBRID_RT_CACHE"); !named.empty()) return fs::absolute(named);
  const fs::path xdg = variable("XDG_CACHE_HOME");
  if (xdg.is_absolute()) return xdg / "hybrid_rt";
  const fs::path home = variable("HOME");
  return home.is_absolute() ? home / ".cache" / "hybrid_rt" : fs::path();
}

}  // namespace

RuntimeCacheFile::RuntimeCacheFile(const std::string& key) {
  const fs::path directory = key.empty() ? fs::path() : cache_directory();
  if (!directory.empty()) path_ = (directory / "tensorrt_rtx" / (key + ".cache")).string();
}

std::string RuntimeCacheFile::read() const {
  if (path_.empty()) return "";
  std::ifstream file(path_, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

void RuntimeCacheFile::write(const std::string& bytes) const {
  if (path_.empty() || bytes.empty()) return;
  std::error_code failed;
  fs::create_directories(fs::path(path_).parent_path(), failed);
  // Another engine of this process may be writing at the same time.
  static std::atomic<unsigned> writes{0};
  const std::string beside = path_ + "." + std::to_string(getpid()) + "." + std::to_string(writes++);
  {
    std::ofstream file(beside, std::ios::binary);
    file.write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
    if (!file.flush()) failed = std::make_error_code(std::errc::io_error);
  }
  if (!failed) fs::rename(beside, path_, failed);
  if (failed) fs::remove(beside, failed);
}

}  // namespace hybrid_rt::tensorrt
