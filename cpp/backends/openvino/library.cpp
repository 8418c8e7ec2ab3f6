#include "library.h"

#include <openvino/core/version.hpp>

#include "hybrid_rt/error.h"

namespace hybrid_rt::openvino {
const Library& Library::instance() {
  static const Library* library = new Library();
  return *library;
}

Library::Library()
    : VendorLibrary({"openvino",
                     "OpenVINO's library",
                     "openvino",
                     "HYBRID_RT_OPENVINO_LIBRARY",
                     "openvino/libs",
                     "libopenvino_c.so",
                     {"libopenvino_c.so"}}) {
  reason_ = open();
  if (reason_.empty()) reason_ = resolve_all();
  if (reason_.empty()) reason_ = check_version();
  if (reason_.empty()) reason_ = make_core();
}

std::string Library::resolve_all() {
#define HYBRID_RT_RESOLVE(name) \
  if (std::string reason = resolve(handle_, #name, functions_.name); !reason.empty()) return reason;
  HYBRID_RT_OPENVINO_FUNCTIONS(HYBRID_RT_RESOLVE)
#undef HYBRID_RT_RESOLVE
  return "";
}

std::string Library::check_version() {
  ov_version_t version{};
  if (functions_.ov_get_openvino_version(&version) != OK || version.buildNumber == nullptr) {
    return "OpenVINO does not report its version";
  }
  version_ = version.buildNumber;
  functions_.ov_version_free(&version);
  version_ = version_.substr(0, version_.find('-'));  // shortens "2026.4.1-21234-..." to "2026.4.1"
  // The C interface renumbers its enumeration of element types between major versions.
  const std::string built_for = std::to_string(OPENVINO_VERSION_MAJOR);
  if (version_.rfind(built_for + ".", 0) != 0) {
    return "OpenVINO " + version_ + " is installed, but this plug-in was built for " + built_for +
           ".x. Install that one, or install hybrid_rt again to build it for this one.";
  }
  return "";
}

std::string Library::make_core() {
  if (functions_.ov_core_create(&core_) != OK) {
    return std::string("OpenVINO can't start: ") + functions_.ov_get_last_err_msg();
  }
  char* capabilities = nullptr;
  if (functions_.ov_core_get_property(core_, "CPU", "OPTIMIZATION_CAPABILITIES", &capabilities) != OK) {
    return std::string("OpenVINO has no CPU device: ") + functions_.ov_get_last_err_msg();
  }
  has_native_bf16_ = std::string(capabilities).find("BF16") != std::string::npos;
  functions_.ov_free(capabilities);
  return "";
}

void Library::require(ov_status_e status, const std::string& subject) const {
  if (status == OK) return;
  const char* detail = functions_.ov_get_last_err_msg();
  throw Error(ErrorKind::kBackend, "openvino", subject, "success of OpenVINO " + version_,
              std::string(functions_.ov_get_error_info(status)) + ": " + (detail ? detail : "no detail"), "");
}

}  // namespace hybrid_rt::openvino
