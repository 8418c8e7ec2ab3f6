#include "library.h"

#include <cstdlib>

#include "hybrid_rt/error.h"
#include "hybrid_rt/log.h"

namespace hybrid_rt::onnxruntime {
namespace {

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

/// Called by the library's own threads.
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

Library::Library()
    : VendorLibrary({"onnxruntime",
                     "ONNX Runtime's library",
                     "onnxruntime",
                     "HYBRID_RT_ONNXRUNTIME_LIBRARY",
                     "onnxruntime/capi",
                     "libonnxruntime.so",
                     {"libonnxruntime.so.1", "libonnxruntime.so"}}) {
  reason_ = open();
  if (reason_.empty()) reason_ = resolve_all();
  if (reason_.empty()) reason_ = make_env();
  if (reason_.empty()) reason_ = list_providers();
}

std::string Library::resolve_all() {
  const auto base = reinterpret_cast<const ApiBase* (*)()>(dlsym(handle_, "OrtGetApiBase"));
  if (base == nullptr) return path_ + " is not ONNX Runtime's library: it has no OrtGetApiBase. " + install();
  version_ = base()->version();
  // Checked before the table is requested, because an older library would complain on stderr.
  const bool is_old = version_.rfind("0.", 0) == 0 ||
                      (version_.rfind("1.", 0) == 0 && std::atoi(version_.c_str() + 2) < static_cast<int>(kApiVersion));
  void* const* table = is_old ? nullptr : base()->get_api(kApiVersion);
  if (table == nullptr) {
    return "ONNX Runtime " + version_ + " is installed (" + path_ + "), but 1." + std::to_string(kApiVersion) +
           " or newer is needed. Upgrade it: pip install -U onnxruntime.";
  }
#define HYBRID_RT_RESOLVE(name, place, ...) functions_.name = reinterpret_cast<decltype(functions_.name)>(table[place]);
  HYBRID_RT_ONNXRUNTIME_FUNCTIONS(HYBRID_RT_RESOLVE)
#undef HYBRID_RT_RESOLVE
  return "";
}

std::string Library::make_env() {
  // Set before it starts, because it would write an id into the user's home directory first. A value that the user has
  // set is kept.
  ::setenv("ORT_DISABLE_TELEMETRY", "1", /*overwrite=*/0);
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
  if (!failure.empty()) return "ONNX Runtime does not list its execution providers: " + failure;
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
  throw Error(ErrorKind::kBackend, "onnxruntime", subject, "success of ONNX Runtime " + version_, failure, "");
}

}  // namespace hybrid_rt::onnxruntime
