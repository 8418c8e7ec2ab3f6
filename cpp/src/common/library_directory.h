#pragma once

#include <filesystem>

namespace hybrid_rt {

/// Where this library lies, links followed; empty if that can't be told.
std::filesystem::path library_directory();

}  // namespace hybrid_rt
