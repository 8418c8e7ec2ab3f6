#pragma once

#include <string>
#include <vector>

#include "hybrid_rt/plugin/vendor_library.h"
#include "interface.h"

namespace hybrid_rt::onnxruntime {

/// The process-wide library, opened by the first call: the file that HYBRID_RT_ONNXRUNTIME_LIBRARY names, else the one
/// of the onnxruntime package next to hybrid_rt in site-packages, else the one that the dynamic linker finds.
class Library : public VendorLibrary {
 public:
  static const Library& instance();

  /// Returns the execution providers that it was built with, without "ExecutionProvider": "CPU", "CUDA", ...
  const std::vector<std::string>& providers() const { return providers_; }

  const Functions& functions() const { return functions_; }
  /// Never destroyed, because sessions may outlive static objects.
  const Env* env() const { return env_; }

  /// Throws Error(kBackend) with the library's message unless `status` is null, which means success.
  void require(Status* status, const std::string& subject) const;

 private:
  Library();
  std::string resolve_all();
  std::string make_env();
  std::string list_providers();
  /// Returns the message of a failure and releases it; empty for success.
  std::string taken(Status* status) const;

  Functions functions_;
  Env* env_ = nullptr;
  std::vector<std::string> providers_;
};

}  // namespace hybrid_rt::onnxruntime
