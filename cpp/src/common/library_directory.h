#pragma once

#include <filesystem>

namespace hybrid_rt {

/// Where this library lies, links followed; empty if that can't be told.
std::filesystem::path own_folder();

}  // namespace hybrid_rt
