#include "orientation.h"

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstring>
#include <utility>
#include <vector>

#include "decoders.h"

namespace hybrid_rt::apps {
namespace {

using Bytes = std::span<const std::uint8_t>;

constexpr std::array<std::uint8_t, 6> kExifMark{'E', 'x', 'i', 'f', 0, 0};

std::uint32_t number(Bytes bytes, std::size_t offset, std::size_t size, bool is_little) {
  std::uint32_t value = 0;
  for (std::size_t i = 0; i < size; ++i) value = value << 8 | bytes[offset + (is_little ? size - 1 - i : i)];
  return value;
}

/// Returns the orientation in the first directory of TIFF data.
int orientation_of(Bytes tiff) {
  constexpr std::size_t kHeader = 8, kEntry = 12;
  constexpr std::uint32_t kOrientation = 0x0112, kShort = 3, kLong = 4;
  while (starts_with(tiff, kExifMark)) tiff = tiff.subspan(kExifMark.size());  // some PNG writers add it too
  if (tiff.size() < kHeader) return 1;
  const bool is_little = tiff[0] == 'I' && tiff[1] == 'I';
  if (!is_little && !(tiff[0] == 'M' && tiff[1] == 'M')) return 1;
  if (number(tiff, 2, 2, is_little) != 42) return 1;
  const std::size_t directory = number(tiff, 4, 4, is_little);
  if (directory + 2 > tiff.size()) return 1;
  const std::size_t entries = number(tiff, directory, 2, is_little);
  std::uint32_t found = 1;
  for (std::size_t i = 0; i < entries; ++i) {
    const std::size_t entry = directory + 2 + i * kEntry;
    if (entry + kEntry > tiff.size()) break;
    const std::uint32_t type = number(tiff, entry + 2, 2, is_little);
    const std::uint32_t count = number(tiff, entry + 4, 4, is_little);
    if (number(tiff, entry, 2, is_little) != kOrientation || (type != kShort && type != kLong)) continue;
    const std::uint32_t size = type == kShort ? 2 : 4;
    if (count >= 1 && count <= 4 / size) found = number(tiff, entry + 8, size, is_little);  // else elsewhere
  }
  return found >= 1 && found <= 8 ? static_cast<int>(found) : 1;
}

/// Returns the TIFF data of the first Exif segment before the pixels; empty if there is none.
Bytes exif_of_jpeg(Bytes file) {
  constexpr std::uint8_t kStartOfScan = 0xDA, kEnd = 0xD9, kApp1 = 0xE1;
  std::size_t at = 2;
  while (at + 1 < file.size()) {
    // Stray bytes before a marker, and fill bytes of 0xFF, are skipped, as the decoder does.
    if (file[at] != 0xFF || file[at + 1] == 0xFF || file[at + 1] == 0) {
      ++at;
      continue;
    }
    const std::uint8_t marker = file[at + 1];
    at += 2;
    if (marker == kStartOfScan || marker == kEnd) break;
    if (marker == 0x01 || (marker >= 0xD0 && marker <= 0xD8)) continue;  // these markers have no length
    if (at + 2 > file.size()) break;
    const std::size_t length = number(file, at, 2, false);
    if (length < 2 || length > file.size() - at) break;
    const Bytes content = file.subspan(at + 2, length - 2);
    if (marker == kApp1 && starts_with(content, kExifMark)) return content;
    at += length;
  }
  return {};
}

/// Returns the content of the eXIf chunk, before or after the pixels; empty if there is none.
Bytes exif_of_png(Bytes file) {
  constexpr std::size_t kSignature = 8, kFrame = 12;
  std::size_t at = kSignature;
  while (at + kFrame <= file.size()) {
    const std::size_t length = number(file, at, 4, false);
    if (length > file.size() - at - kFrame) break;
    if (std::memcmp(file.data() + at + 4, "eXIf", 4) == 0) {
      return file.subspan(at + 8, length);
    }
    if (std::memcmp(file.data() + at + 4, "IEND", 4) == 0) break;
    at += kFrame + length;
  }
  return {};
}

}  // namespace

int exif_orientation(Bytes file) {
  return orientation_of(starts_with(file, kJpegMagic) ? exif_of_jpeg(file) : exif_of_png(file));
}

bool swaps_sides(int orientation) { return orientation >= 5; }

Image upright(Image image, int orientation) {
  if (orientation == 1) return image;
  const std::size_t width = static_cast<std::size_t>(image.width), height = static_cast<std::size_t>(image.height);
  Image turned;
  turned.width = swaps_sides(orientation) ? image.height : image.width;
  turned.height = swaps_sides(orientation) ? image.width : image.height;
  turned.rgb.resize(image.rgb.size());
  turned.warning = std::move(image.warning);
  const bool is_flipped_down = orientation == 3 || orientation == 4 || orientation == 6 || orientation == 7;
  const bool is_flipped_across = orientation == 2 || orientation == 3 || orientation == 7 || orientation == 8;
  std::uint8_t* target = turned.rgb.data();
  for (int y = 0; y < turned.height; ++y) {
    for (int x = 0; x < turned.width; ++x, target += 3) {
      std::size_t row = static_cast<std::size_t>(swaps_sides(orientation) ? x : y);
      std::size_t column = static_cast<std::size_t>(swaps_sides(orientation) ? y : x);
      if (is_flipped_down) row = height - 1 - row;
      if (is_flipped_across) column = width - 1 - column;
      std::memcpy(target, image.rgb.data() + (row * width + column) * 3, 3);
    }
  }
  return turned;
}

}  // namespace hybrid_rt::apps
