#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <string>

#include "class_colours.h"
#include "picture.h"

namespace hybrid_rt::apps {

/// A box with a caption: name and score. An empty name and score: no caption.
struct Annotation {
  std::array<float, 4> box{};  ///< x1, y1, x2, y2 in pixels; may reach beyond the image
  std::int64_t label = 0;      ///< chooses the colour
  std::string name{};          ///< UTF-8 of any length; the font has ASCII only, see to_ascii()
  std::string score{};
};

/// Draws outlines, 2 pixels wide in an image of usual size and wider in a large one, in the label's colour and the
/// captions on a background of that colour, the first annotation on top. Captions lie within the image. A box with a
/// coordinate that is not a number is left out.
void annotate(Picture& picture, std::span<const Annotation> annotations);

}  // namespace hybrid_rt::apps
