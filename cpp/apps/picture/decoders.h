#pragma once

#include <cstdint>
#include <span>
#include <string>

#include "picture.h"

// The decoders of the two formats. The same pixels as Pillow's convert("RGB") gives, so that a picture has the same
// boxes in Python and in C++: accurate DCT, no gamma, the high byte of 16-bit samples, alpha dropped.

namespace hybrid_rt::apps {

Picture decode_jpeg(std::span<const std::uint8_t> bytes, const std::string& name, const PictureLimits& limits);
PictureSize jpeg_size(std::span<const std::uint8_t> bytes, const std::string& name, const PictureLimits& limits);

Picture decode_png(std::span<const std::uint8_t> bytes, const std::string& name, const PictureLimits& limits);
PictureSize png_size(std::span<const std::uint8_t> bytes, const std::string& name, const PictureLimits& limits);

/// Throws PictureError for a picture beyond the limits.
void check_size(std::int64_t width, std::int64_t height, const std::string& name, const PictureLimits& limits);

/// What is thrown where a decoder fails; `message` is its own.
PictureError damaged(const std::string& name, const std::string& format, const std::string& message);

}  // namespace hybrid_rt::apps
