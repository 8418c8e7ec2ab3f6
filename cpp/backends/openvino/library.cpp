#include "library.h"

#include <dlfcn.h>

#include <openvino/core/version.hpp>

#include <cstdlib>
#include <filesystem>
#include <vector>

#include "hybrid_rt/error.h"

namespace hybrid_rt::openvino {
namespace {

namespace fs = std::filesystem;

constexpr char kInstall[] = "Install it: pip install openvino.";

std::vector<std::string> candidates() {
  if (const char* named = std::getenv("HYBRID_RT_OPENVINO_LIBRARY")) return {named};
  std::vector<std::string> found;
  Dl_info info{};
  if (dladdr(reinterpret_cast<const void*>(&candidates), &info) != 0 && info.dli_fname != nullptr) {
    // site-packages/hybrid_rt/lib/this -> site-packages/openvino/libs
    std::error_code failed;
    const fs::path libs = fs::absolute(info.dli_fname, failed).parent_path() / ".." / ".." / "openvino" / "libs";
    for (const auto& entry : fs::directory_iterator(libs, failed)) {
      if (entry.path().filename().string().rfind("libopenvino_c.so", 0) == 0) found.push_back(entry.path().string());
    }
  }
  found.emplace_back("libopenvino_c.so");
  return found;
}

}  // namespace

const Library& Library::instance() {
  static const Library* library = new Library();
  return *library;
}

Library::Library() {
  reason_ = open();
  if (reason_.empty()) reason_ = check_version();
  if (reason_.empty()) reason_ = make_core();
}

std::string Library::open() {
  std::string tried;
  for (const std::string& path : candidates()) {
    if (void* handle = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL)) return resolve(handle);
    tried += std::string(tried.empty() ? "" : "; ") + dlerror();
  }
  return "OpenVINO's library can't be opened (" + tried + "). " + kInstall;
}

std::string Library::resolve(void* handle) {
#define HYBRID_RT_RESOLVE(name)                                                        \
  functions_.name = reinterpret_cast<decltype(functions_.name)>(dlsym(handle, #name)); \
  if (functions_.name == nullptr) return "OpenVINO's library lacks " #name ". Upgrade it: pip install -U openvino.";
  HYBRID_RT_OPENVINO_FUNCTIONS(HYBRID_RT_RESOLVE)
#undef HYBRID_RT_RESOLVE
  return "";
}

std::string Library::check_version() {
  ov_version_t version{};
  if (functions_.ov_get_openvino_version(&version) != OK || version.buildNumber == nullptr) {
    return "OpenVINO does not tell its version";
  }
  version_ = version.buildNumber;
  functions_.ov_version_free(&version);
  version_ = version_.substr(0, version_.find('-'));  // "2026.4.1-21234-..." -> "2026.4.1"
  // The C interface's enumeration of element types is renumbered between major versions.
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
              std::string(functions_.ov_get_error_info(status)) + ": " + (detail ? detail : "no detail"),
              "The message is OpenVINO's own.");
}

}  // namespace hybrid_rt::openvino
