#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <span>
#include <string>

#include "image.h"

// Decoders of the two formats. They return the same pixels as Pillow's convert("RGB"), so that an image has the same
// boxes in Python and in C++: accurate DCT, no gamma, the high byte of 16-bit samples, alpha dropped.

namespace hybrid_rt::apps {

Image decode_jpeg(std::span<const std::uint8_t> bytes, const std::string& name, const ImageLimits& limits);
ImageSize jpeg_size(std::span<const std::uint8_t> bytes, const std::string& name, const ImageLimits& limits);

Image decode_png(std::span<const std::uint8_t> bytes, const std::string& name, const ImageLimits& limits);
ImageSize png_size(std::span<const std::uint8_t> bytes, const std::string& name, const ImageLimits& limits);

/// First bytes of every JPEG.
constexpr std::array<std::uint8_t, 3> kJpegMagic{0xFF, 0xD8, 0xFF};

inline bool starts_with(std::span<const std::uint8_t> bytes, std::span<const std::uint8_t> magic) {
  return bytes.size() >= magic.size() && std::equal(magic.begin(), magic.end(), bytes.begin());
}

/// Throws ImageError for an image beyond the limits.
void check_size(std::int64_t width, std::int64_t height, const std::string& name, const ImageLimits& limits);

/// Creates the error of a decoder that fails with `message`.
ImageError damaged(const std::string& name, const std::string& format, const std::string& message);

}  // namespace hybrid_rt::apps
