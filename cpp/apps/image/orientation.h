#pragma once

#include <cstdint>
#include <span>

#include "image.h"

// Orientation of the camera according to EXIF: 1 is upright, 2 to 8 are mirrored or rotated. hybrid_rt/common/images.py
// is the counterpart in Python; both return the same for the same bytes.

namespace hybrid_rt::apps {

/// Returns the orientation, 1 to 8, from a JPEG's first Exif segment or a PNG's eXIf chunk; 1 if there is none that can
/// be read.
int exif_orientation(std::span<const std::uint8_t> file);

/// Returns true if this orientation includes a quarter turn, which swaps height and width.
bool swaps_sides(int orientation);

/// Rotates and mirrors the pixels as Pillow's ImageOps.exif_transpose does.
Image upright(Image image, int orientation);

}  // namespace hybrid_rt::apps
