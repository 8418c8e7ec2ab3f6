#pragma once

#include <string>

namespace hybrid_rt::tensorrt {

/// What TensorRT-RTX compiled on this machine for an engine, kept between processes: in the folder of hybrid_rt's cache
/// (HYBRID_RT_CACHE, XDG_CACHE_HOME, ~/.cache). Whatever is wrong with the folder, nothing is kept.
class RuntimeCacheFile {
 public:
  /// `key`: of the engine and of all that its kernels depend on. Empty: nothing is kept.
  explicit RuntimeCacheFile(const std::string& key);

  /// Empty if there is none.
  std::string read() const;
  /// Beside its place, then renamed: another process reads the old one or the new one.
  void write(const std::string& bytes) const;

 private:
  std::string path_;
};

}  // namespace hybrid_rt::tensorrt
