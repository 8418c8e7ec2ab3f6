#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <string>

#include "class_colours.h"
#include "image.h"

namespace hybrid_rt::apps {

/// A box with a caption of name and score; no caption if both are empty.
struct Annotation {
  std::array<float, 4> box{};  ///< x1, y1, x2, y2 in pixels; may extend beyond the image
  std::int64_t label = 0;      ///< chooses the colour
  std::string name{};          ///< UTF-8 of any length; drawn in ASCII, see to_ascii()
  std::string score{};
};

/// Draws each box's outline in the label's colour, and its caption on a background of that colour, the first annotation
/// on top. Lines are 2 pixels wide, and wider in large images. Captions lie within the image. A box with a NaN
/// coordinate is skipped.
void annotate(Image& image, std::span<const Annotation> annotations);

}  // namespace hybrid_rt::apps
