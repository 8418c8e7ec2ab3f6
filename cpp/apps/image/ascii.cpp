#include "ascii.h"

#include <cstddef>
#include <cstdint>

namespace hybrid_rt::apps {
namespace {

constexpr char32_t kInvalid = 0xFFFD;

// Letter of each character without its accent; '?' for characters that have none or several (see letters_of).
constexpr char32_t kLatinStart = 0xA0;  // Latin-1 Supplement and Latin Extended-A
constexpr std::string_view kLatin =
    " ??????? ?a???? ??23 ??? 1o?????AAAAAA?CEEEEIIIIDNOOOOOxOUUUUY??aaaaaa?ceeeeiiiidnooooo/ouuuuy?y"
    "AaAaAaCcCcCcCcDdDdEeEeEeEeEeGgGgGgGgHhHhIiIiIiIiIi??JjKkkLlLlLl??LlNnNnNn?NnOoOoOo??RrRrRrSsSsSsSs"
    "TtTtTtUuUuUuUuUuUuWwYyYZzZzZzs";
constexpr char32_t kAdditionalStart = 0x1E00;  // Latin Extended Additional
constexpr std::string_view kAdditional =
    "AaBbBbBbCcDdDdDdDdDdEeEeEeEeEeFfGgHhHhHhHhHhIiIiKkKkKkLlLlLlLlMmMmMmNnNnNnNnOoOoOoOoPpPpRrRrRrRrSsSsSsSsSs"
    "TtTtTtTtUuUuUuUuUuVvVvWwWwWwWwWwXxXxYyZzZzZzhtwy?sss?dAaAaAaAaAaAaAaAaAaAaAaAaEeEeEeEeEeEeEeEeIiIi"
    "OoOoOoOoOoOoOoOoOoOoOoOoUuUuUuUuUuUuUuYyYyYyYy??VvYy";
static_assert(kLatinStart + kLatin.size() == 0x180);
static_assert(kAdditionalStart + kAdditional.size() == 0x1F00);

/// Removes the first character from `text` and returns it; kInvalid for a byte that starts none.
char32_t take_character(std::string_view& text) {
  const auto first = static_cast<std::uint8_t>(text[0]);
  const std::size_t length = first < 0x80 ? 1 : first >= 0xC2 && first < 0xE0 ? 2 : (first >> 4) == 0xE ? 3 : 4;
  char32_t character = length == 1 ? first : first & (0xFF >> (length + 1));
  bool is_valid = first < 0x80 || (first >= 0xC2 && first < 0xF5 && text.size() >= length);
  for (std::size_t i = 1; is_valid && i < length; ++i) {
    const auto next = static_cast<std::uint8_t>(text[i]);
    is_valid = (next & 0xC0) == 0x80;
    character = (character << 6) | (next & 0x3F);
  }
  text.remove_prefix(is_valid ? length : 1);
  return is_valid ? character : kInvalid;
}

/// Replacements for characters that need several ASCII characters, or a plain mark.
std::string_view letters_of(char32_t character) {
  switch (character) {
    case 0xC6:
      return "AE";
    case 0xDE:
      return "Th";
    case 0xDF:
      return "ss";
    case 0xE6:
      return "ae";
    case 0xFE:
      return "th";
    case 0x132:
      return "IJ";
    case 0x133:
      return "ij";
    case 0x13F:
      return "L";
    case 0x140:
      return "l";
    case 0x149:
      return "'n";
    case 0x152:
      return "OE";
    case 0x153:
      return "oe";
    case 0x1E9E:
      return "SS";
    case 0x2010:
    case 0x2011:
    case 0x2012:
    case 0x2013:
    case 0x2014:
      return "-";
    case 0x2018:
    case 0x2019:
      return "'";
    case 0x201C:
    case 0x201D:
      return "\"";
    case 0x2026:
      return "...";
    default:
      return "?";
  }
}

}  // namespace

std::string to_ascii(std::string_view text) {
  const auto is_in = [](char32_t character, char32_t start, std::string_view table) {
    return character >= start && character < start + table.size();
  };
  std::string result;
  while (!text.empty()) {
    const char32_t character = take_character(text);
    char letter = '?';
    if (character >= ' ' && character <= '~') {
      letter = static_cast<char>(character);
    } else if (is_in(character, kLatinStart, kLatin)) {
      letter = kLatin[character - kLatinStart];
    } else if (is_in(character, kAdditionalStart, kAdditional)) {
      letter = kAdditional[character - kAdditionalStart];
    } else if (character >= 0x300 && character < 0x370) {
      continue;  // a combining accent after its letter
    }
    if (character == '?' || letter != '?') {
      result += letter;
    } else {
      result += letters_of(character);
    }
  }
  return result;
}

}  // namespace hybrid_rt::apps
