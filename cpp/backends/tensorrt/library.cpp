#include "library.h"

#include <algorithm>
#include <utility>

#include "hybrid_rt/error.h"
#include "hybrid_rt/log.h"

namespace hybrid_rt::tensorrt {
namespace {

thread_local std::string last_error;

LogLevel level_of(int severity) {
  switch (severity) {
    case 0:
    case 1:
      return LogLevel::kError;
    case 2:
      return LogLevel::kWarning;
    case 3:
      return LogLevel::kInfo;
    default:
      return LogLevel::kDebug;
  }
}

struct Version {
  int major;
  int minor;
  int patch;
};

/// Converts a version number: 101401 is 10.14.1. Before 10.0, 8601 was 8.6.1.
Version version_of(int number) {
  if (number >= 5000 && number < 10000) return {number / 1000, number / 100 % 10, number % 100};
  return {number / 10000, number / 100 % 100, number % 100};
}

/// TensorRT-RTX 1.5 and newer have the tables of TensorRT 11, followed by further entries.
bool fits(const VendorHeaders& headers, const std::string& library, const Version& version) {
  if (headers.library == library) {
    return headers.major == version.major && headers.minor <= version.minor;
  }
  return library == "tensorrt_rtx" && headers.major == 11 && version.major == 1 && version.minor >= 5;
}

std::string known_headers() {
  std::string text;
  for (const VendorHeaders& headers : vendor_headers()) {
    text += (text.empty() ? "" : ", ") + headers.library + " " + std::to_string(headers.major) + "." +
            std::to_string(headers.minor);
  }
  return text.empty() ? "none" : text;
}

}  // namespace

std::vector<VendorHeaders>& vendor_headers() {
  static auto* const headers = new std::vector<VendorHeaders>();
  return *headers;
}

const Library& Library::tensorrt() {
  static const Library* const library = new Library("tensorrt", {"tensorrt",
                                                                 "TensorRT's library",
                                                                 "tensorrt",
                                                                 "HYBRID_RT_TENSORRT_LIBRARY",
                                                                 "tensorrt_libs",
                                                                 "libnvinfer.so",
                                                                 {"libnvinfer.so.11", "libnvinfer.so.10"}});
  return *library;
}

const Library& Library::tensorrt_rtx() {
  static const Library* const library = new Library("tensorrt_rtx", {"tensorrt",
                                                                     "TensorRT-RTX's library",
                                                                     "tensorrt-rtx-cu13-libs",
                                                                     "HYBRID_RT_TENSORRT_RTX_LIBRARY",
                                                                     "tensorrt_rtx_libs",
                                                                     "libtensorrt_rtx.so",
                                                                     {"libtensorrt_rtx.so.1", "libtensorrt_rtx.so"}});
  return *library;
}

const Library& Library::named(const std::string& name) {
  if (name == "tensorrt") return tensorrt();
  if (name == "tensorrt_rtx") return tensorrt_rtx();
  throw Error(ErrorKind::kBackend, "tensorrt", "artifact", "one for tensorrt or tensorrt_rtx", "one for '" + name + "'",
              "Upgrade hybrid_rt: the file was made by a newer version.");
}

Library::Library(std::string name, VendorLibrarySearch search)
    : VendorLibrary(std::move(search)), name_(std::move(name)) {
  reason_ = open();
  int (*get_version)() = nullptr;
  if (reason_.empty()) reason_ = resolve(handle_, "getInferLibVersion", get_version);
  if (reason_.empty()) reason_ = resolve(handle_, "createInferRuntime_INTERNAL", create_);
  if (!reason_.empty()) return;
  number_ = get_version();
  reason_ = check_version();
}

std::string Library::check_version() {
  const Version version = version_of(number_);
  version_ = std::to_string(version.major) + "." + std::to_string(version.minor) + "." + std::to_string(version.patch);
  for (const VendorHeaders& headers : vendor_headers()) {
    // A library's own headers cover more of it than those of its sibling.
    if (fits(headers, name_, version) && (headers_ == nullptr || headers.library == name_)) headers_ = &headers;
  }
  if (headers_ != nullptr) return "";
  return name_ + " " + version_ + " is installed (" + path_ + "), but this plug-in was built with the headers of " +
         known_headers() +
         ", and TensorRT's interface changes with its major version. Install a version of these, or build hybrid_rt "
         "with that version's headers (docs/engine-tensorrt.md).";
}

std::unique_ptr<VendorEngine> Library::deserialize(const DeserializeOptions& options) const {
  require_open(name_);
  if (!options.switches.is_default() && !headers_->has_switches) {
    throw Error(ErrorKind::kBackend, "tensorrt", "artifact, options kernel_specialization and cuda_graphs",
                "TensorRT-RTX, and a plug-in that was built with its headers",
                name_ + " " + version_ + ", and one that was built with those of " + known_headers(),
                "Build hybrid_rt with those headers (docs/engine-tensorrt.md), or convert without these options.");
  }
  take_last_error();
  const auto log = [name = name_](int severity, const char* text) {
    if (severity <= 1) last_error = text;
    hybrid_rt::log(level_of(severity), name + ": " + text);
  };
  auto engine = headers_->deserialize(create_, number_, log, options);
  require(engine != nullptr, "artifact");
  return engine;
}

std::string Library::take_last_error() { return std::exchange(last_error, ""); }

void Library::require(bool succeeded, const std::string& subject) const {
  if (succeeded) return;
  const std::string said = take_last_error();
  throw Error(ErrorKind::kBackend, "tensorrt", subject, "success of " + name_ + " " + version_,
              said.empty() ? "a failure without a message" : said, "");
}

}  // namespace hybrid_rt::tensorrt
