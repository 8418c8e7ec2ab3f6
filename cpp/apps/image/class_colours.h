#pragma once

#include <array>
#include <cstdint>

namespace hybrid_rt::apps {

/// Red, green and blue.
using Colour = std::array<std::uint8_t, 3>;

/// Returns the colour of a class. A label has the same colour in every image and every program:
/// hybrid_rt/common/class_names.py and apps/serve/page.html compute it in the same way. Adjacent labels differ clearly.
Colour label_colour(std::int64_t label);

/// Returns black or white, whichever is more readable on `background`. The contrast is at least 4.5 to 1.
Colour text_colour(const Colour& background);

}  // namespace hybrid_rt::apps
