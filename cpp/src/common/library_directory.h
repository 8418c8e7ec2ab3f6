#pragma once

#include <filesystem>

namespace hybrid_rt {

enum class Links {
  kFollowed,  ///< the directory of the real file, with whatever was built or installed next to it
  kAsLoaded,  ///< the directory of the path that the dynamic linker opened
};

/// Returns the directory of this library; empty if it is unknown.
std::filesystem::path library_directory(Links links);

}  // namespace hybrid_rt
