#pragma once

#include <cstdint>
#include <limits>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

namespace hybrid_rt {

/// Limit of nesting, far above that of our own files. Code that visits or writes a parsed value recurses for each
/// level.
constexpr int kDeepestJson = 64;

/// Returns true if JSON text nests more brackets than that.
inline bool is_too_deep(std::string_view text) {
  int depth = 0;
  bool is_in_string = false;
  for (size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if (is_in_string) {
      if (c == '\\') {
        ++i;
      } else if (c == '"') {
        is_in_string = false;
      }
    } else if (c == '"') {
      is_in_string = true;
    } else if (c == '[' || c == '{') {
      if (++depth > kDeepestJson) return true;
    } else if (c == ']' || c == '}') {
      --depth;
    }
  }
  return false;
}

/// Parses untrusted text. The value is discarded (Json::is_discarded) if the text is not JSON, or is nested too deeply.
template <class Json = nlohmann::json>
Json parse_json(std::string_view text) {
  if (is_too_deep(text)) return Json(nlohmann::detail::value_t::discarded);
  return Json::parse(text, nullptr, /*allow_exceptions=*/false);
}

/// Returns the beginning of an untrusted value, for the text of an error.
template <class Json>
std::string shown(const Json& value) {
  constexpr size_t kLongest = 80;
  const std::string text = value.dump(-1, ' ', true, Json::error_handler_t::replace);
  return text.size() <= kLongest ? text : text.substr(0, kLongest) + "...";
}

/// Returns the value if it is an integer, or arrays of integers. Otherwise throws json::type_error. nlohmann's own
/// conversion accepts every number, and is undefined for 1e308.
inline const nlohmann::json& integers_in(const nlohmann::json& value) {
  if (value.is_array()) {
    for (const nlohmann::json& element : value) integers_in(element);
    return value;
  }
  const bool is_too_large =
      value.is_number_unsigned() && value.get<uint64_t>() > uint64_t{std::numeric_limits<int64_t>::max()};
  if (!value.is_number_integer() || is_too_large) {
    throw nlohmann::json::type_error::create(
        302, std::string("type must be 64-bit integer, but is ") + value.type_name(), &value);
  }
  return value;
}

}  // namespace hybrid_rt
