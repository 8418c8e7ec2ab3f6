#include <png.h>

#include <algorithm>
#include <csetjmp>
#include <cstddef>
#include <cstdio>
#include <cstring>

#include "decoders.h"

namespace hybrid_rt::apps {
namespace {

/// Limit of the image data after the last row. Once libpng has read that row it inflates all of this data, up to a
/// thousandfold, in a time that no size in the header bounds.
constexpr std::size_t kMostBehind = std::size_t{64} << 10;

std::uint32_t big_endian(std::span<const std::uint8_t> bytes) {
  return std::uint32_t{bytes[0]} << 24 | std::uint32_t{bytes[1]} << 16 | std::uint32_t{bytes[2]} << 8 | bytes[3];
}

/// Wraps libpng's decoder. Its errors leave by longjmp, so the functions that call it own nothing that needs a
/// destructor.
class PngDecoder {
 public:
  explicit PngDecoder(std::span<const std::uint8_t> bytes) : bytes_(bytes) {}
  PngDecoder(const PngDecoder&) = delete;
  PngDecoder& operator=(const PngDecoder&) = delete;
  ~PngDecoder() { png_destroy_read_struct(&png_, &info_, nullptr); }

  /// Returns false on failure; message() gives the reason.
  bool read_header(const ImageLimits& limits) {
    if (setjmp(place_) != 0) return false;
    png_ = png_create_read_struct(
        PNG_LIBPNG_VER_STRING, this,
        [](png_structp png, png_const_charp text) { static_cast<PngDecoder*>(png_get_error_ptr(png))->fail(text); },
        [](png_structp, png_const_charp) {});
    if (png_ == nullptr) fail("out of memory");
    info_ = png_create_info_struct(png_);
    if (info_ == nullptr) fail("out of memory");
    png_set_read_fn(png_, this, [](png_structp png, png_bytep target, std::size_t count) {
      static_cast<PngDecoder*>(png_get_io_ptr(png))->give(target, count);
    });
    // Texts and profiles may be small in the file but take seconds to inflate, and never change a pixel.
    png_set_keep_unknown_chunks(png_, PNG_HANDLE_CHUNK_NEVER, nullptr, -1);
    png_set_user_limits(png_, static_cast<png_uint_32>(limits.max_side), static_cast<png_uint_32>(limits.max_side));
    png_read_info(png_, info_);
    return true;
  }

  /// Reads rows with three bytes per pixel. Returns false on failure; message() gives the reason.
  bool read_rows(std::uint8_t* pixels) {
    if (setjmp(place_) != 0) return false;
    const int colours = png_get_color_type(png_, info_);
    const int depth = png_get_bit_depth(png_, info_);
    if (colours == PNG_COLOR_TYPE_PALETTE) png_set_palette_to_rgb(png_);
    if (colours == PNG_COLOR_TYPE_GRAY && depth < 8) png_set_expand_gray_1_2_4_to_8(png_);
    if (depth == 16) png_set_strip_16(png_);
    if ((colours & PNG_COLOR_MASK_COLOR) == 0) png_set_gray_to_rgb(png_);
    png_set_strip_alpha(png_);
    const int passes = png_set_interlace_handling(png_);
    png_read_update_info(png_, info_);
    const std::size_t stride = static_cast<std::size_t>(png_get_image_width(png_, info_)) * 3;
    if (png_get_rowbytes(png_, info_) != stride) fail("rows that do not have three bytes per pixel");
    const std::size_t end = end_of_pixels(), height = png_get_image_height(png_, info_);
    for (int pass = 0; pass < passes; ++pass) {
      for (std::size_t y = 0; y < height; ++y) {
        // Deflated rows are at most an eighth longer than raw ones, which have at most eight bytes per pixel in the
        // file.
        const std::size_t rows = (pass + 1 < passes ? height : height - y) * (stride / 3 * 8 + 1);
        if (end > offset_ + rows + rows / 8 + kMostBehind) fail("more image data than its rows need");
        png_read_row(png_, pixels + y * stride, nullptr);
      }
    }
    png_read_end(png_, nullptr);  // a file that ends right after its last row is truncated too
    return true;
  }

  const char* message() const { return message_; }

 private:
  [[noreturn]] void fail(const char* text) {
    std::snprintf(message_, sizeof message_, "%s", text);
    std::longjmp(place_, 1);
  }

  /// Returns the end of the last chunk with pixels, within the file.
  std::size_t end_of_pixels() const {
    constexpr std::size_t kSignature = 8, kOfChunk = 12;  // length, type and checksum
    std::size_t end = 0;
    for (std::size_t at = kSignature; at + kOfChunk <= bytes_.size();) {
      const std::size_t length = big_endian(bytes_.subspan(at));
      if (length > bytes_.size() - at - kOfChunk) break;
      if (std::memcmp(bytes_.data() + at + 4, "IDAT", 4) == 0) end = at + kOfChunk + length;
      at += kOfChunk + length;
    }
    return end;
  }

  void give(std::uint8_t* target, std::size_t count) {
    if (count > bytes_.size() - offset_) fail("file ends before its IEND chunk");
    std::memcpy(target, bytes_.data() + offset_, count);
    offset_ += count;
  }

  std::span<const std::uint8_t> bytes_;
  std::size_t offset_ = 0;
  png_structp png_ = nullptr;
  png_infop info_ = nullptr;
  std::jmp_buf place_{};
  char message_[256] = "";
};

}  // namespace

/// Only the header is read, which is the first chunk, whatever else precedes the pixels.
ImageSize png_size(std::span<const std::uint8_t> bytes, const std::string& name, const ImageLimits& limits) {
  constexpr std::size_t kType = 12, kWidth = 16, kHeight = 20, kEnd = 33;
  if (bytes.size() < kEnd) throw damaged(name, "PNG", "file ends before its IHDR chunk does");
  if (std::memcmp(bytes.data() + kType, "IHDR", 4) != 0) throw damaged(name, "PNG", "its first chunk is not IHDR");
  const std::int64_t width = big_endian(bytes.subspan(kWidth)), height = big_endian(bytes.subspan(kHeight));
  if (width == 0 || height == 0) throw damaged(name, "PNG", "invalid size in its IHDR chunk");
  check_size(width, height, name, limits);
  return {static_cast<int>(width), static_cast<int>(height)};
}

Image decode_png(std::span<const std::uint8_t> bytes, const std::string& name, const ImageLimits& limits) {
  const ImageSize size = png_size(bytes, name, limits);
  PngDecoder decoder(bytes);
  if (!decoder.read_header(limits)) throw damaged(name, "PNG", decoder.message());
  Image image{size.width, size.height,
              std::vector<std::uint8_t>(static_cast<std::size_t>(size.width) * size.height * 3)};
  if (!decoder.read_rows(image.rgb.data())) throw damaged(name, "PNG", decoder.message());
  return image;
}

}  // namespace hybrid_rt::apps
