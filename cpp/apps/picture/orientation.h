#pragma once

#include <cstdint>
#include <span>

#include "picture.h"

// How a camera was held, as EXIF says it: 1 is upright, 2 to 8 are mirrored or turned. hybrid_rt/common/images.py is
// the twin in Python: both read the same of the same bytes.

namespace hybrid_rt::apps {

/// Returns 1 to 8 of a JPEG's first Exif segment or a PNG's eXIf chunk; 1 where there is none that can be read.
int exif_orientation(std::span<const std::uint8_t> file);

/// Returns whether a picture of this orientation is turned by a quarter, so that its sides change places.
bool swaps_sides(int orientation);

/// Turns and mirrors the pixels as Pillow's ImageOps.exif_transpose does.
Picture upright(Picture picture, int orientation);

}  // namespace hybrid_rt::apps
