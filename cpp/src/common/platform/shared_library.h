#pragma once

#include <filesystem>
#include <string>
#include <string_view>

/// What Linux and Windows do differently. Each header has two sources, NAME_posix.cpp and NAME_windows.cpp, of which
/// CMake compiles one. No file here includes torch.
namespace hybrid_rt::platform {

#ifdef _WIN32
inline constexpr std::string_view kLibraryPrefix = "";
inline constexpr std::string_view kLibrarySuffix = ".dll";
inline constexpr char kPathSeparator = ';';  ///< between directories in an environment variable
#else
inline constexpr std::string_view kLibraryPrefix = "lib";
inline constexpr std::string_view kLibrarySuffix = ".so";
inline constexpr char kPathSeparator = ':';
#endif

enum class Symbols {
  kForCaller,   ///< found by find_symbol() alone
  kForProcess,  ///< found by libraries that are loaded later too; Windows has no such thing, and looks in named ones
};

/// Loads a shared library, with all that it is linked to. Returns null if that fails; library_failure() says why.
void* open_library(const std::string& path, Symbols symbols);

/// Returns true if a library of that path is loaded. Does not load it.
bool is_library_loaded(const std::string& path);

/// Returns the address of an exported symbol; null if the library has none of that name.
void* find_symbol(void* library, const char* name);

/// Returns why the last call of this thread failed, in the system's words.
std::string library_failure();

/// Returns the file that code at this address was loaded from, as the loader opened it; empty if that is not known.
std::filesystem::path library_of(const void* address);

}  // namespace hybrid_rt::platform
