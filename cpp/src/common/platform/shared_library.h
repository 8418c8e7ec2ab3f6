#pragma once

#include <filesystem>
#include <string>
#include <string_view>

/// Functions that differ between Linux and Windows. Each header has two sources, NAME_posix.cpp and NAME_windows.cpp,
/// and CMake compiles one of them. No file here includes torch.
namespace hybrid_rt::platform {

#ifdef _WIN32
inline constexpr std::string_view kLibraryPrefix = "";
inline constexpr std::string_view kLibrarySuffix = ".dll";
inline constexpr char kPathSeparator = ';';  ///< separates directories in an environment variable
#else
inline constexpr std::string_view kLibraryPrefix = "lib";
inline constexpr std::string_view kLibrarySuffix = ".so";
inline constexpr char kPathSeparator = ':';
#endif

enum class Symbols {
  kForCaller,   ///< visible to find_symbol() only
  kForProcess,  ///< also visible to libraries that are loaded later (not on Windows)
};

/// Loads a shared library and its dependencies. Returns null on failure; library_failure() gives the reason.
void* open_library(const std::string& path, Symbols symbols);

/// Returns true if the library at that path is loaded. Does not load it.
bool is_library_loaded(const std::string& path);

/// Returns the address of an exported symbol; null if the library has no such symbol.
void* find_symbol(void* library, const char* name);

/// Returns the system's message for the last failure in this thread.
std::string library_failure();

/// Returns the file that the code at this address was loaded from, as the loader opened it; empty if unknown.
std::filesystem::path library_of(const void* address);

}  // namespace hybrid_rt::platform
