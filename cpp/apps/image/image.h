#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

namespace hybrid_rt::apps {

/// 8-bit RGB, rows from the top, no padding: rgb.size() == width * height * 3.
struct Image {
  int width = 0;
  int height = 0;
  std::vector<std::uint8_t> rgb;
  std::string warning{};  ///< a defect of the file that did not affect the pixels; empty if none
};

/// Reports an image that can't be read, decoded or written. what() has the form of hybrid_rt::Error
/// (`hybrid_rt[image]: SUBJECT: expected X, got Y. REMEDY`), which is not used here so that this file and its tests
/// need no torch.
class ImageError : public std::runtime_error {
 public:
  ImageError(std::string_view subject, std::string_view expected, std::string_view got, std::string_view remedy);
};

/// Larger images are refused by their headers alone, before memory is allocated.
struct ImageLimits {
  std::int64_t max_side = 16'384;
  std::int64_t max_pixels = 100'000'000;
};
inline constexpr std::size_t kMaxFileBytes = std::size_t{1} << 30;

/// Order of the pixels: as stored in the file, or upright according to EXIF.
enum class Orientation { kAsStored, kExif };

/// Decodes a JPEG or PNG, recognised by its first bytes, to the same pixels as hybrid_rt in Python. `name` is for
/// messages. Grey, palette, CMYK and 16-bit images become 8-bit RGB; an alpha channel is dropped; a PNG's gamma is not
/// applied; EXIF orientation is applied only on request. Throws ImageError, also for truncated or damaged data that
/// could be decoded in part: boxes of half an image look right and are wrong. Stray bytes that do not affect the pixels
/// cause a warning.
Image decode_image(std::span<const std::uint8_t> bytes, const std::string& name, const ImageLimits& limits = {},
                   Orientation orientation = Orientation::kAsStored);

struct ImageSize {
  int width = 0;
  int height = 0;
};

/// Returns the size of the image that decode_image() would return, from the header alone. Throws the same errors as
/// decode_image() for the part that it reads.
ImageSize read_size(std::span<const std::uint8_t> bytes, const std::string& name, const ImageLimits& limits = {},
                    Orientation orientation = Orientation::kAsStored);

/// Reads the file (or pipe) and decodes it. Throws ImageError.
Image read_image(const std::string& path, Orientation orientation = Orientation::kAsStored);

/// Encodes an image as PNG. Throws ImageError.
std::vector<std::uint8_t> encode_png(const Image& image);

/// Writes a file next to `path` and renames it, so that a failure leaves the previous file in place. Throws
/// ImageError.
void write_png(const Image& image, const std::string& path);

}  // namespace hybrid_rt::apps
