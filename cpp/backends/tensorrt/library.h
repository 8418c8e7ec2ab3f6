#pragma once

#include <string>

#include "hybrid_rt/plugin/vendor_library.h"
#include "vendor_runtime.h"

namespace hybrid_rt::tensorrt {

/// One of the vendor's two libraries in this process, opened when it is first asked for: TensorRT, or TensorRT-RTX.
class Library : public VendorLibrary {
 public:
  static const Library& tensorrt();
  static const Library& tensorrt_rtx();
  /// By the name that specs and options use: "tensorrt", "tensorrt_rtx". Throws Error(kBackend) for others.
  static const Library& named(const std::string& name);

  const std::string& name() const { return name_; }
  const std::string& path() const { return path_; }  ///< That was opened, as the dynamic linker was asked for it.

  /// An engine on the current device. Throws Error(kBackend) with the vendor's message.
  std::unique_ptr<VendorEngine> deserialize(const DeserializeOptions& options) const;

  /// What the vendor said last in this thread, of errors; asked for once.
  static std::string take_last_error();
  /// Throws Error(kBackend) with the vendor's message unless it succeeded.
  void require(bool succeeded, const std::string& subject) const;

 private:
  Library(std::string name, VendorLibrarySearch search);
  std::string check_version();

  std::string name_;
  int number_ = 0;  // as getInferLibVersion gives it
  void* create_ = nullptr;
  const VendorHeaders* headers_ = nullptr;
};

}  // namespace hybrid_rt::tensorrt
