#pragma once

#include <tvm/ffi/c_api.h>

#include <initializer_list>
#include <string>
#include <string_view>
#include <vector>

#include "hybrid_rt/plugin/vendor_library.h"

namespace hybrid_rt::tvm {

// The functions of TVM's C interface that this backend uses, resolved at run time: linking needs no version of the
// library, and a process without it can still load the plug-in and report the reason.
// clang-format off
#define HYBRID_RT_TVM_FUNCTIONS(X) \
  X(TVMFFIGetVersion)              \
  X(TVMFFIObjectDecRef)            \
  X(TVMFFIFunctionGetGlobal)       \
  X(TVMFFIFunctionCall)            \
  X(TVMFFIErrorMoveFromRaised)     \
  X(TVMFFITensorFromDLPack)
// clang-format on

struct Functions {
#define HYBRID_RT_DECLARE(name) decltype(&::name) name = nullptr;
  HYBRID_RT_TVM_FUNCTIONS(HYBRID_RT_DECLARE)
#undef HYBRID_RT_DECLARE
};

/// A value of TVM. If it is a reference to an object, this class owns the reference.
class Value {
 public:
  Value() = default;
  explicit Value(TVMFFIAny any) : any_(any) {}
  Value(Value&& other) noexcept : any_(other.any_) { other.any_ = TVMFFIAny{}; }
  Value& operator=(Value&& other) noexcept;
  Value(const Value&) = delete;
  Value& operator=(const Value&) = delete;
  ~Value();

  const TVMFFIAny& get() const { return any_; }
  /// Calls the function that this value refers to. Throws Error(kBackend) with TVM's message after `subject`.
  Value call(const std::string& subject, std::vector<TVMFFIAny> arguments) const;

 private:
  TVMFFIAny any_{};  // none
};

TVMFFIAny argument(int64_t value);
TVMFFIAny argument(bool value);
/// `text` must outlive the call.
TVMFFIAny argument(const char* text);

/// The process-wide library, opened by the first call: the file that HYBRID_RT_TVM_LIBRARY names, else the one of the
/// tvm package next to hybrid_rt in site-packages, else the one that the dynamic linker finds.
class Library : public VendorLibrary {
 public:
  static const Library& instance();
  const Functions& functions() const { return functions_; }

  /// Returns a function that TVM registers. Throws Error(kBackend) if there is none of that name.
  Value global(std::string_view name) const;
  /// Throws Error(kBackend) with the library's message unless `status` is 0.
  void require(int status, const std::string& subject) const;

 private:
  Library();
  std::string open_interface(const std::string& runtime);
  std::string resolve_all();
  std::string check_version();

  Functions functions_;
  void* interface_ = nullptr;  ///< libtvm_ffi.so, which has the functions
};

}  // namespace hybrid_rt::tvm
