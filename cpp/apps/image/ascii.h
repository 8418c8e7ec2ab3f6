#pragma once

#include <string>
#include <string_view>

namespace hybrid_rt::apps {

/// Transliterates UTF-8 into printable ASCII: Latin letters lose their accents ("Zürich" becomes "Zurich"), typographic
/// marks become plain ones, and every other character or invalid byte becomes '?'.
std::string to_ascii(std::string_view text);

}  // namespace hybrid_rt::apps
