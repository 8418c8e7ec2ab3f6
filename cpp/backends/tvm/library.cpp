#include "library.h"

#include <filesystem>
#include <fstream>
#include <regex>
#include <utility>

#include "hybrid_rt/error.h"

namespace hybrid_rt::tvm {
namespace {

namespace fs = std::filesystem;

std::string path_of(const void* handle_symbol) {
  Dl_info info{};
  return dladdr(handle_symbol, &info) != 0 && info.dli_fname != nullptr ? info.dli_fname : "";
}

}  // namespace

Value& Value::operator=(Value&& other) noexcept {
  std::swap(any_, other.any_);
  return *this;
}

Value::~Value() {
  if (any_.type_index >= kTVMFFIStaticObjectBegin) Library::instance().functions().TVMFFIObjectDecRef(any_.v_obj);
}

Value Value::call(const std::string& subject, std::vector<TVMFFIAny> arguments) const {
  const Library& library = Library::instance();
  TVMFFIAny result{};
  library.require(library.functions().TVMFFIFunctionCall(any_.v_obj, arguments.data(),
                                                         static_cast<int32_t>(arguments.size()), &result),
                  subject);
  return Value(result);
}

TVMFFIAny argument(int64_t value) {
  TVMFFIAny any{};
  any.type_index = kTVMFFIInt;
  any.v_int64 = value;
  return any;
}

TVMFFIAny argument(bool value) {
  TVMFFIAny any{};
  any.type_index = kTVMFFIBool;
  any.v_int64 = value ? 1 : 0;
  return any;
}

TVMFFIAny argument(const char* text) {
  TVMFFIAny any{};
  any.type_index = kTVMFFIRawStr;
  any.v_c_str = text;
  return any;
}

const Library& Library::instance() {
  static const Library* library = new Library();
  return *library;
}

Library::Library()
    : VendorLibrary({"tvm",
                     "TVM's runtime",
                     "apache-tvm",
                     "HYBRID_RT_TVM_LIBRARY",
                     "tvm/lib",
                     "libtvm_runtime.so",
                     {"libtvm_runtime.so"}}) {
  reason_ = open([this](const std::string& path) { return open_interface(path); });
  if (reason_.empty()) reason_ = resolve_all();
  if (reason_.empty()) reason_ = check_version();
}

/// Opens the library that the runtime is linked to: the one of the tvm_ffi package next to the tvm package, or the
/// linker's. RTLD_GLOBAL, because the runtime and compiled segments look up its functions by name.
std::string Library::open_interface(const std::string& runtime) {
  const fs::path packages = fs::path(runtime).parent_path() / ".." / "..";
  std::error_code failed;
  const fs::path beside = fs::weakly_canonical(packages / "tvm_ffi" / "lib" / "libtvm_ffi.so", failed);
  interface_ = dlopen(fs::exists(beside, failed) ? beside.c_str() : "libtvm_ffi.so", RTLD_NOW | RTLD_GLOBAL);
  return interface_ == nullptr ? runtime + ": " + dlerror() : "";
}

std::string Library::resolve_all() {
  // If the linker was given a bare name, the path that it found.
  if (const void* symbol = dlsym(handle_, "TVMBackendParallelLaunch")) path_ = path_of(symbol);
#define HYBRID_RT_RESOLVE(name) \
  if (std::string reason = resolve(interface_, #name, functions_.name); !reason.empty()) return reason;
  HYBRID_RT_TVM_FUNCTIONS(HYBRID_RT_RESOLVE)
#undef HYBRID_RT_RESOLVE
  return "";
}

std::string Library::check_version() {
  TVMFFIVersion interface{};
  functions_.TVMFFIGetVersion(&interface);
  // Before version 1.0, the interface's structures may change with each minor version.
  if (interface.major != TVM_FFI_VERSION_MAJOR || interface.minor != TVM_FFI_VERSION_MINOR) {
    return "apache-tvm-ffi " + std::to_string(interface.major) + "." + std::to_string(interface.minor) +
           " is installed, but this plug-in was built for " + std::to_string(TVM_FFI_VERSION_MAJOR) + "." +
           std::to_string(TVM_FFI_VERSION_MINOR) +
           ". Install that one, or install hybrid_rt again to build it for this one.";
  }
  // The runtime does not report its version; only its package does.
  std::error_code failed;
  const fs::path file = fs::weakly_canonical(fs::path(path_).parent_path() / ".." / "_version.py", failed);
  std::ifstream stream(file);
  const std::string text((std::istreambuf_iterator<char>(stream)), std::istreambuf_iterator<char>());
  std::smatch match;
  if (!std::regex_search(text, match, std::regex(R"(\n__version__ = [^\n]*'(\d+(\.\d+)*)[^\n]*')"))) {
    return "TVM's version is unknown: " + file.string() + " is missing or names no version. " + install();
  }
  version_ = match[1];
  return "";
}

Value Library::global(std::string_view name) const {
  const TVMFFIByteArray bytes{name.data(), name.size()};
  TVMFFIObjectHandle handle = nullptr;
  require(functions_.TVMFFIFunctionGetGlobal(&bytes, &handle), std::string(name));
  if (handle == nullptr) {
    throw Error(ErrorKind::kBackend, "tvm", "library", "a function " + std::string(name),
                "none in TVM " + version_ + " (" + path_ + ")", "Install the version that the file was made with.");
  }
  TVMFFIAny any{};
  any.type_index = kTVMFFIFunction;
  any.v_obj = static_cast<TVMFFIObject*>(handle);
  return Value(any);
}

void Library::require(int status, const std::string& subject) const {
  if (status == 0) return;
  std::string detail = "no detail";
  TVMFFIObjectHandle error = nullptr;
  functions_.TVMFFIErrorMoveFromRaised(&error);
  if (error != nullptr) {
    const TVMFFIErrorCell* cell = TVMFFIErrorGetCellPtr(error);
    detail = std::string(cell->kind.data, cell->kind.size) + ": " + std::string(cell->message.data, cell->message.size);
    functions_.TVMFFIObjectDecRef(error);
  }
  throw Error(ErrorKind::kBackend, "tvm", subject, "success of TVM " + version_, detail, "");
}

}  // namespace hybrid_rt::tvm
