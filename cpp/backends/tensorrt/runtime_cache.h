#pragma once

#include <string>

namespace hybrid_rt::tensorrt {

/// Keeps the kernels that TensorRT-RTX compiled for an engine on this machine, for later processes, in the directory of
/// hybrid_rt's cache (HYBRID_RT_CACHE, XDG_CACHE_HOME, ~/.cache). If the directory can't be used, nothing is kept.
class RuntimeCacheFile {
 public:
  /// `key` identifies the engine and everything that its kernels depend on. Empty: nothing is kept.
  explicit RuntimeCacheFile(const std::string& key);

  /// Returns the contents of the file; empty if there is none.
  std::string read() const;
  /// Writes a temporary file and renames it, so that other processes read either the old or the new contents.
  void write(const std::string& bytes) const;

 private:
  std::string path_;
};

}  // namespace hybrid_rt::tensorrt
