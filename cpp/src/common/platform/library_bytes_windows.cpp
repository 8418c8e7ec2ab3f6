#include <fcntl.h>
#include <io.h>
#include <windows.h>

#include <algorithm>
#include <atomic>
#include <filesystem>
#include <system_error>

#include "common/platform/library_bytes.h"

namespace hybrid_rt::platform {
namespace {

namespace fs = std::filesystem;

constexpr wchar_t kPrefix[] = L"hybrid_rt-library-";

std::string message(DWORD code) { return std::system_category().message(static_cast<int>(code)); }

/// Removes the files of processes that have ended. Files that are open or loaded can't be removed.
void remove_old(const fs::path& directory) {
  std::error_code failed;
  for (const auto& entry : fs::directory_iterator(directory, failed)) {
    if (entry.path().filename().wstring().rfind(kPrefix, 0) == 0) DeleteFileW(entry.path().c_str());
  }
}

bool write_all(HANDLE file, const char* next, std::size_t size) {
  constexpr std::size_t kMost = std::size_t{1} << 30;  // a call accepts fewer than 2^32 bytes
  while (size > 0) {
    DWORD written = 0;
    if (WriteFile(file, next, static_cast<DWORD>(std::min(size, kMost)), &written, nullptr) == 0) return false;
    next += written;
    size -= written;
  }
  return true;
}

}  // namespace

LibraryBytes write_library(const std::string& name, const void* bytes, std::size_t size) {
  static std::atomic<unsigned> count{0};
  LibraryBytes made;
  std::error_code failed;
  const fs::path directory = fs::temp_directory_path(failed);
  if (failed) {
    made.failure = failed.message();
    return made;
  }
  remove_old(directory);
  const fs::path path =
      directory / (kPrefix + fs::path(name).wstring() + L"-" + std::to_wstring(GetCurrentProcessId()) + L"-" +
                   std::to_wstring(count.fetch_add(1)) + L".dll");
  const HANDLE writing =
      CreateFileW(path.c_str(), GENERIC_WRITE, 0, nullptr, CREATE_NEW, FILE_ATTRIBUTE_TEMPORARY, nullptr);
  if (writing == INVALID_HANDLE_VALUE) {
    made.failure = message(GetLastError());
    return made;
  }
  const bool is_written = write_all(writing, static_cast<const char*>(bytes), size);
  if (!is_written) made.failure = message(GetLastError());
  CloseHandle(writing);
  // Stays open, so that other processes can't remove the file before it is loaded. The loader may read it at the same
  // time.
  const HANDLE reading = is_written ? CreateFileW(path.c_str(), GENERIC_READ, FILE_SHARE_READ, nullptr, OPEN_EXISTING,
                                                  FILE_ATTRIBUTE_NORMAL, nullptr)
                                    : INVALID_HANDLE_VALUE;
  if (reading == INVALID_HANDLE_VALUE) {
    if (is_written) made.failure = message(GetLastError());
    DeleteFileW(path.c_str());
    return made;
  }
  made.descriptor = _open_osfhandle(reinterpret_cast<intptr_t>(reading), _O_RDONLY);
  made.path = path.string();
  return made;
}

void remove_library(int descriptor, const std::string& path) {
  _close(descriptor);
  DeleteFileW(fs::path(path).c_str());
}

}  // namespace hybrid_rt::platform
