#pragma once

#include <filesystem>

namespace hybrid_rt {

enum class Links {
  kFollowed,  ///< where the file really lies, with what was built or installed beside it
  kAsLoaded,  ///< the path that the dynamic linker opened
};

/// The directory of this library; empty if that can't be told.
std::filesystem::path library_directory(Links links);

}  // namespace hybrid_rt
