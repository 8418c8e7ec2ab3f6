#include "library.h"

#include <dlfcn.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>

#include "hybrid_rt/error.h"
#include "hybrid_rt/log.h"

namespace hybrid_rt::onnxruntime {
namespace {

namespace fs = std::filesystem;

constexpr char kInstall[] = "Install it: pip install onnxruntime.";

std::vector<std::string> candidates() {
  if (const char* named = std::getenv("HYBRID_RT_ONNXRUNTIME_LIBRARY")) return {named};
  std::vector<std::string> found;
  Dl_info info{};
  if (dladdr(reinterpret_cast<const void*>(&candidates), &info) != 0 && info.dli_fname != nullptr) {
    // site-packages/hybrid_rt/lib/this -> site-packages/onnxruntime/capi
    std::error_code failed;
    const fs::path capi = fs::absolute(info.dli_fname, failed).parent_path() / ".." / ".." / "onnxruntime" / "capi";
    for (const auto& entry : fs::directory_iterator(capi, failed)) {
      if (entry.path().filename().string().rfind("libonnxruntime.so", 0) == 0) found.push_back(entry.path().string());
    }
  }
  found.emplace_back("libonnxruntime.so.1");
  found.emplace_back("libonnxruntime.so");
  return found;
}

LogLevel level_of(LogSeverity severity) {
  switch (severity) {
    case LogSeverity::kVerbose:
      return LogLevel::kDebug;
    case LogSeverity::kInfo:
      return LogLevel::kInfo;
    case LogSeverity::kWarning:
      return LogLevel::kWarning;
    default:
      return LogLevel::kError;
  }
}

/// Called by threads of the library's own.
void forward(void* /*parameter*/, LogSeverity severity, const char* /*category*/, const char* /*log_id*/,
             const char* /*location*/, const char* message) {
  std::string text = std::string("onnxruntime: ") + message;
  text.erase(text.find_last_not_of(" \n") + 1);
  log(level_of(severity), text);
}

}  // namespace

const Library& Library::instance() {
  static const Library* library = new Library();
  return *library;
}

Library::Library() {
  reason_ = open();
  if (reason_.empty()) reason_ = make_env();
  if (reason_.empty()) reason_ = list_providers();
}

std::string Library::open() {
  std::string tried;
  for (const std::string& path : candidates()) {
    if (void* handle = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL)) return resolve(handle, path);
    tried += std::string(tried.empty() ? "" : "; ") + dlerror();
  }
  return "ONNX Runtime's library can't be opened (" + tried + "). " + kInstall;
}

std::string Library::resolve(void* handle, const std::string& path) {
  const auto base = reinterpret_cast<const ApiBase* (*)()>(dlsym(handle, "OrtGetApiBase"));
  if (base == nullptr) return path + " is not ONNX Runtime's library: it has no OrtGetApiBase. " + kInstall;
  version_ = base()->version();
  // Asked before the table is: an older library tells on stderr that it has none of that version.
  const bool is_old = version_.rfind("0.", 0) == 0 ||
                      (version_.rfind("1.", 0) == 0 && std::atoi(version_.c_str() + 2) < static_cast<int>(kApiVersion));
  void* const* table = is_old ? nullptr : base()->get_api(kApiVersion);
  if (table == nullptr) {
    return "ONNX Runtime " + version_ + " is installed (" + path + "), but 1." + std::to_string(kApiVersion) +
           " or newer is needed. Upgrade it: pip install -U onnxruntime.";
  }
#define HYBRID_RT_RESOLVE(name, place, ...) functions_.name = reinterpret_cast<decltype(functions_.name)>(table[place]);
  HYBRID_RT_ONNXRUNTIME_FUNCTIONS(HYBRID_RT_RESOLVE)
#undef HYBRID_RT_RESOLVE
  return "";
}

std::string Library::make_env() {
  const std::string failure =
      taken(functions_.CreateEnvWithCustomLogger(&forward, nullptr, LogSeverity::kWarning, "hybrid_rt", &env_));
  if (!failure.empty()) return "ONNX Runtime can't start: " + failure;
  taken(functions_.DisableTelemetryEvents(env_));
  return "";
}

std::string Library::list_providers() {
  char** names = nullptr;
  int count = 0;
  const std::string failure = taken(functions_.GetAvailableProviders(&names, &count));
  if (!failure.empty()) return "ONNX Runtime does not tell its execution providers: " + failure;
  for (int i = 0; i < count; ++i) {
    const std::string name = names[i];
    providers_.push_back(name.substr(0, name.find("ExecutionProvider")));
  }
  taken(functions_.ReleaseAvailableProviders(names, count));
  return "";
}

std::string Library::taken(Status* status) const {
  if (status == nullptr) return "";
  std::string message = functions_.GetErrorMessage(status);
  functions_.ReleaseStatus(status);
  message.erase(message.find_last_not_of(" \n") + 1);
  return message.empty() ? "no detail" : message;
}

void Library::require(Status* status, const std::string& subject) const {
  const std::string failure = taken(status);
  if (failure.empty()) return;
  throw Error(ErrorKind::kBackend, "onnxruntime", subject, "success of ONNX Runtime " + version_, failure,
              "The message is ONNX Runtime's own.");
}

}  // namespace hybrid_rt::onnxruntime
