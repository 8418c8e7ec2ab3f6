#pragma once

#include <string>
#include <vector>

namespace hybrid_rt {

inline std::string joined(const std::vector<std::string>& parts, const char* separator) {
  std::string text;
  for (const std::string& part : parts) text += (text.empty() ? "" : separator) + part;
  return text;
}

}  // namespace hybrid_rt
