#pragma once

#include <string>
#include <vector>

#include "hybrid_rt/plugin/vendor_library.h"
#include "interface.h"

namespace hybrid_rt::onnxruntime {

/// The library of this process, opened by the first call: the file that HYBRID_RT_ONNXRUNTIME_LIBRARY names, else the
/// onnxruntime package beside hybrid_rt in site-packages, else what the dynamic linker finds.
class Library : public VendorLibrary {
 public:
  static const Library& instance();

  /// The execution providers that it was built with, without "ExecutionProvider": "CPU", "CUDA", ...
  const std::vector<std::string>& providers() const { return providers_; }

  const Functions& functions() const { return functions_; }
  /// Never destroyed: its sessions may outlive our static objects.
  const Env* env() const { return env_; }

  /// Throws Error(kBackend) with the library's own message unless `status` is null, which stands for success.
  void require(Status* status, const std::string& subject) const;

 private:
  Library();
  std::string resolve_all();
  std::string make_env();
  std::string list_providers();
  /// The message of a failure, which is released; empty for success.
  std::string taken(Status* status) const;

  Functions functions_;
  Env* env_ = nullptr;
  std::vector<std::string> providers_;
};

}  // namespace hybrid_rt::onnxruntime
