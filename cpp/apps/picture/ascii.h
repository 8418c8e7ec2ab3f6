#pragma once

#include <string>
#include <string_view>

namespace hybrid_rt::apps {

/// Writes UTF-8 in printable ASCII: Latin letters lose their accents ("Zürich" becomes "Zurich"), typographic marks
/// become plain ones, and every other character, or byte that is no UTF-8, becomes '?'.
std::string to_ascii(std::string_view text);

}  // namespace hybrid_rt::apps
