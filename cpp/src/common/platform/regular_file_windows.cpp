#include <fcntl.h>
#include <io.h>
#include <windows.h>

#include <algorithm>
#include <filesystem>
#include <system_error>

#include "common/platform/regular_file.h"

namespace hybrid_rt::platform {
namespace {

std::string message(DWORD code) { return std::system_category().message(static_cast<int>(code)); }

}  // namespace

RegularFile open_regular_file(const std::string& path) {
  // Other processes may replace the name meanwhile, as on Linux.
  const HANDLE file = CreateFileW(std::filesystem::path(path).c_str(), GENERIC_READ,
                                  FILE_SHARE_READ | FILE_SHARE_WRITE | FILE_SHARE_DELETE, nullptr, OPEN_EXISTING,
                                  FILE_ATTRIBUTE_NORMAL, nullptr);
  if (file == INVALID_HANDLE_VALUE) return {-1, 0, message(GetLastError())};
  LARGE_INTEGER size{};
  if (GetFileType(file) != FILE_TYPE_DISK || GetFileSizeEx(file, &size) == 0) {
    CloseHandle(file);
    return {-1, 0, "no regular file"};
  }
  const int descriptor = _open_osfhandle(reinterpret_cast<intptr_t>(file), _O_RDONLY | _O_BINARY);
  return {descriptor, static_cast<std::uint64_t>(size.QuadPart), descriptor < 0 ? "too many open files" : ""};
}

std::ptrdiff_t read_at(int descriptor, void* into, std::size_t count, std::uint64_t position, std::string& failure) {
  constexpr std::size_t kMost = std::size_t{1} << 30;  // a call accepts fewer than 2^32 bytes
  OVERLAPPED at{};
  at.Offset = static_cast<DWORD>(position);
  at.OffsetHigh = static_cast<DWORD>(position >> 32);
  DWORD got = 0;
  const auto file = reinterpret_cast<HANDLE>(_get_osfhandle(descriptor));
  if (ReadFile(file, into, static_cast<DWORD>(std::min(count, kMost)), &got, &at) == 0) {
    const DWORD code = GetLastError();
    if (code == ERROR_HANDLE_EOF) return 0;
    failure = message(code);
    return -1;
  }
  return static_cast<std::ptrdiff_t>(got);
}

void close_file(int descriptor) { _close(descriptor); }

}  // namespace hybrid_rt::platform
