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
struct Picture {
  int width = 0;
  int height = 0;
  std::vector<std::uint8_t> rgb;
  std::string warning{};  ///< what the decoder found odd in a file whose pixels are whole; empty if nothing
};

/// A picture that can't be read, decoded or written. what() has the form of hybrid_rt::Error
/// (`hybrid_rt[picture]: SUBJECT: expected X, got Y. REMEDY`), which is not used here so that this file and its
/// tests need no torch.
class PictureError : public std::runtime_error {
 public:
  PictureError(std::string_view subject, std::string_view expected, std::string_view got, std::string_view remedy);
};

/// What is larger is refused from the header alone, before memory is asked for.
struct PictureLimits {
  std::int64_t max_side = 16'384;
  std::int64_t max_pixels = 100'000'000;
};
inline constexpr std::size_t kMaxFileBytes = std::size_t{1} << 30;

/// Whether pixels are as the file holds them, or turned upright by what EXIF says of how the camera was held.
enum class Orientation { kAsStored, kExif };

/// Decodes a JPEG or PNG, told apart by the first bytes, to the pixels that hybrid_rt reads in Python; `name` is for
/// messages. Grey, palette, CMYK and 16-bit pictures become 8-bit RGB; an alpha channel is dropped; a PNG's gamma is
/// not applied, EXIF orientation only where it is asked for. Throws PictureError, also for data that is truncated or
/// damaged but would decode in part: boxes of half a picture look right and are wrong. Stray bytes that leave the
/// pixels whole are a warning.
Picture decode_picture(std::span<const std::uint8_t> bytes, const std::string& name, const PictureLimits& limits = {},
                       Orientation orientation = Orientation::kAsStored);

struct PictureSize {
  int width = 0;
  int height = 0;
};

/// What decode_picture() would return the size of, from the header alone; it throws the same for what it reads.
PictureSize read_size(std::span<const std::uint8_t> bytes, const std::string& name, const PictureLimits& limits = {},
                      Orientation orientation = Orientation::kAsStored);

/// Reads the file (or pipe) and decodes it. Throws PictureError.
Picture read_picture(const std::string& path, Orientation orientation = Orientation::kAsStored);

/// Throws PictureError.
std::vector<std::uint8_t> encode_png(const Picture& picture);

/// Writes beside `path` and renames, so that a failure leaves what was there. Throws PictureError.
void write_png(const Picture& picture, const std::string& path);

}  // namespace hybrid_rt::apps
