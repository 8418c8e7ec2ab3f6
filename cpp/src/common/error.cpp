#include "hybrid_rt/error.h"

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

std::string compose(std::string_view scope, std::string_view subject, std::string_view expected, std::string_view got,
                    std::string_view remedy) {
  std::string text = "hybrid_rt[";
  text.append(scope).append("]: ").append(beginning(subject)).append(": expected ").append(expected);
  text.append(", got ").append(beginning(got)).append(beginning(got).size() < got.size() ? "...." : ".");
  if (!remedy.empty()) text.append(" ").append(remedy);
  return text;
}

}  // namespace

Error::Error(ErrorKind kind, std::string_view scope, std::string_view subject, std::string_view expected,
             std::string_view got, std::string_view remedy)
    : std::runtime_error(compose(scope, subject, expected, got, remedy)), kind_(kind) {}

}  // namespace hybrid_rt
