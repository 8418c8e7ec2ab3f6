#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace hybrid_rt {

/// The names of a detector's classes in UTF-8, by label. A label without a name has an empty one, or is beyond the end.
using ClassNames = std::vector<std::string>;

/// Returns the name of a label; empty if it has none.
inline std::string class_name(std::int64_t label, const ClassNames& names) {
  const bool is_listed = label >= 0 && static_cast<std::uint64_t>(label) < names.size();
  return is_listed ? names[static_cast<std::size_t>(label)] : "";
}

/// Returns the name of a label, or its number if it has no name.
inline std::string class_text(std::int64_t label, const ClassNames& names) {
  const std::string name = class_name(label, names);
  return name.empty() ? std::to_string(label) : name;
}

}  // namespace hybrid_rt
