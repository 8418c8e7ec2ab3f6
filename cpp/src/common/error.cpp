#include "hybrid_rt/error.h"

#include <array>

namespace hybrid_rt {
namespace {

/// Shortens a text, because it may quote a file, and nobody should have to read a name of a megabyte.
std::string_view beginning(std::string_view text) {
  constexpr size_t kLongest = 8000;
  if (text.size() <= kLongest) return text;
  size_t end = kLongest;
  while (end > 0 && (static_cast<unsigned char>(text[end]) & 0xC0) == 0x80) --end;  // not within a character
  return text.substr(0, end);
}

/// Escapes control characters, because a text may quote a file: what() ends at a NUL, and a terminal obeys the others.
std::string without_controls(std::string_view text) {
  constexpr std::array<char, 16> kDigits{'0', '1', '2', '3', '4', '5', '6', '7',
                                         '8', '9', 'a', 'b', 'c', 'd', 'e', 'f'};
  std::string escaped;
  escaped.reserve(text.size());
  for (const char character : text) {
    const auto byte = static_cast<unsigned char>(character);
    const bool is_control = (byte < 0x20 && byte != '\n' && byte != '\t') || byte == 0x7F;
    if (is_control) {
      escaped.append("\\x").append({kDigits[byte >> 4], kDigits[byte & 0xF]});
    } else {
      escaped.push_back(character);
    }
  }
  return escaped;
}

std::string compose(std::string_view scope, std::string_view subject, std::string_view expected, std::string_view got,
                    std::string_view remedy) {
  std::string text = "hybrid_rt[";
  text.append(scope).append("]: ").append(beginning(subject)).append(": expected ").append(expected);
  text.append(", got ").append(beginning(got)).append(beginning(got).size() < got.size() ? "...." : ".");
  if (!remedy.empty()) text.append(" ").append(remedy);
  return without_controls(text);
}

}  // namespace

Error::Error(ErrorKind kind, std::string_view scope, std::string_view subject, std::string_view expected,
             std::string_view got, std::string_view remedy)
    : std::runtime_error(compose(scope, subject, expected, got, remedy)), kind_(kind) {}

}  // namespace hybrid_rt
