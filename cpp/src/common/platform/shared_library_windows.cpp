#include <windows.h>

#include <array>

#include "common/platform/shared_library.h"

namespace hybrid_rt::platform {

void* open_library(const std::string& path, Symbols /*symbols*/) {
  const std::filesystem::path file(path);
  // With this flag, Windows first looks for dependencies next to an absolute path. The flag allows no other path.
  const DWORD flags = file.is_absolute() ? LOAD_WITH_ALTERED_SEARCH_PATH : 0;
  return reinterpret_cast<void*>(LoadLibraryExW(file.c_str(), nullptr, flags));
}

bool is_library_loaded(const std::string& path) {
  HMODULE module = nullptr;
  return GetModuleHandleExW(GET_MODULE_HANDLE_EX_FLAG_UNCHANGED_REFCOUNT, std::filesystem::path(path).c_str(),
                            &module) != 0;
}

void* find_symbol(void* library, const char* name) {
  return reinterpret_cast<void*>(GetProcAddress(reinterpret_cast<HMODULE>(library), name));
}

std::string library_failure() {
  const DWORD code = GetLastError();
  std::array<char, 512> text{};
  const DWORD length = FormatMessageA(FORMAT_MESSAGE_FROM_SYSTEM | FORMAT_MESSAGE_IGNORE_INSERTS, nullptr, code, 0,
                                      text.data(), static_cast<DWORD>(text.size()), nullptr);
  std::string reason(text.data(), length);
  reason.erase(reason.find_last_not_of("\r\n. ") + 1);
  return reason.empty() ? "error " + std::to_string(code) : reason;
}

std::filesystem::path library_of(const void* address) {
  HMODULE module = nullptr;
  const DWORD flags = GET_MODULE_HANDLE_EX_FLAG_FROM_ADDRESS | GET_MODULE_HANDLE_EX_FLAG_UNCHANGED_REFCOUNT;
  if (GetModuleHandleExW(flags, reinterpret_cast<LPCWSTR>(address), &module) == 0) return {};
  std::wstring file(MAX_PATH, L'\0');
  for (;;) {
    const DWORD length = GetModuleFileNameW(module, file.data(), static_cast<DWORD>(file.size()));
    if (length == 0) return {};
    if (length < file.size()) return file.substr(0, length);
    file.resize(2 * file.size());  // the path was cut off
  }
}

}  // namespace hybrid_rt::platform
