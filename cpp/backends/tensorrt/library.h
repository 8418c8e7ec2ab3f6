#pragma once

#include <string>

#include "hybrid_rt/plugin/vendor_library.h"
#include "vendor_runtime.h"

namespace hybrid_rt::tensorrt {

/// One of the vendor's two libraries, TensorRT or TensorRT-RTX, opened on first use in this process.
class Library : public VendorLibrary {
 public:
  static const Library& tensorrt();
  static const Library& tensorrt_rtx();
  /// Returns the library by its name in specs and options: "tensorrt" or "tensorrt_rtx". Throws Error(kBackend) for any
  /// other name.
  static const Library& named(const std::string& name);

  const std::string& name() const { return name_; }
  const std::string& path() const { return path_; }  ///< path or name that was passed to the dynamic linker

  /// Creates an engine on the current device. Throws Error(kBackend) with the vendor's message.
  std::unique_ptr<VendorEngine> deserialize(const DeserializeOptions& options) const;

  /// Returns and clears the vendor's last error message of this thread.
  static std::string take_last_error();
  /// Throws Error(kBackend) with the vendor's message unless `succeeded` is true.
  void require(bool succeeded, const std::string& subject) const;

 private:
  Library(std::string name, VendorLibrarySearch search);
  std::string check_version();

  std::string name_;
  int number_ = 0;  // result of getInferLibVersion
  void* create_ = nullptr;
  const VendorHeaders* headers_ = nullptr;
};

}  // namespace hybrid_rt::tensorrt
