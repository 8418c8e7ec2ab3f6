#pragma once

#include <openvino/c/openvino.h>

#include <optional>
#include <string>

#include "hybrid_rt/plugin/vendor_library.h"

namespace hybrid_rt::openvino {

// The functions of OpenVINO's C interface that this backend uses, resolved at run time: linking needs no version of the
// library, and a process without it can still load the plug-in and report the reason.
// clang-format off
#define HYBRID_RT_OPENVINO_FUNCTIONS(X)          \
  X(ov_get_openvino_version)                     \
  X(ov_version_free)                             \
  X(ov_get_last_err_msg)                         \
  X(ov_get_error_info)                           \
  X(ov_free)                                     \
  X(ov_core_create)                              \
  X(ov_core_get_property)                        \
  X(ov_core_read_model_from_memory_buffer)       \
  X(ov_core_compile_model)                       \
  X(ov_model_free)                               \
  X(ov_compiled_model_create_infer_request)      \
  X(ov_compiled_model_free)                      \
  X(ov_infer_request_infer)                      \
  X(ov_infer_request_set_input_tensor_by_index)  \
  X(ov_infer_request_set_output_tensor_by_index) \
  X(ov_infer_request_get_output_tensor_by_index) \
  X(ov_infer_request_free)                       \
  X(ov_tensor_create_from_host_ptr)              \
  X(ov_tensor_create)                            \
  X(ov_tensor_get_shape)                         \
  X(ov_tensor_get_element_type)                  \
  X(ov_tensor_get_byte_size)                     \
  X(ov_tensor_data)                              \
  X(ov_tensor_free)                              \
  X(ov_shape_free)
// clang-format on

struct Functions {
#define HYBRID_RT_DECLARE(name) decltype(&::name) name = nullptr;
  HYBRID_RT_OPENVINO_FUNCTIONS(HYBRID_RT_DECLARE)
#undef HYBRID_RT_DECLARE
};

/// The process-wide library, opened by the first call: the file that HYBRID_RT_OPENVINO_LIBRARY names, else the one of
/// the openvino package next to hybrid_rt in site-packages, else the one that the dynamic linker finds.
class Library : public VendorLibrary {
 public:
  static const Library& instance();
  bool has_native_bf16() const { return has_native_bf16_; }

  const Functions& functions() const { return functions_; }
  /// Never destroyed, because OpenVINO's plug-ins may outlive static objects.
  ov_core_t* core() const { return core_; }

  /// Throws Error(kBackend) with the library's message unless `status` is OK.
  void require(ov_status_e status, const std::string& subject) const;

 private:
  Library();
  std::string resolve_all();
  std::string check_version();
  std::string make_core();

  Functions functions_;
  ov_core_t* core_ = nullptr;
  bool has_native_bf16_ = false;
};

}  // namespace hybrid_rt::openvino
