#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <string>

#include "picture.h"

namespace hybrid_rt::apps {

struct Annotation {
  std::array<float, 4> box{};  ///< x1, y1, x2, y2 in pixels; may reach beyond the picture
  std::int64_t label = 0;      ///< chooses the colour
  std::string text;            ///< beside the box; characters that are not printable ASCII become '?'
};

using Colour = std::array<std::uint8_t, 3>;

/// The same label has the same colour in every picture; neighbouring labels differ clearly.
Colour label_colour(std::int64_t label);

/// Draws outlines of 2 pixels and the texts, the first annotation on top. A box with a coordinate that is not a number
/// is left out.
void annotate(Picture& picture, std::span<const Annotation> annotations);

}  // namespace hybrid_rt::apps
