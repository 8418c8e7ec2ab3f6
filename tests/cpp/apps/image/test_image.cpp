#include <doctest/doctest.h>
#include <png.h>
#include <turbojpeg.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <limits>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "annotate.h"
#include "image.h"
#include "temporary.h"

namespace {

using hybrid_rt::apps::annotate;
using hybrid_rt::apps::Annotation;
using hybrid_rt::apps::Colour;
using hybrid_rt::apps::decode_image;
using hybrid_rt::apps::encode_png;
using hybrid_rt::apps::Image;
using hybrid_rt::apps::ImageError;
using hybrid_rt::apps::label_colour;
using hybrid_rt::apps::read_image;
using hybrid_rt::apps::write_png;

using Bytes = std::vector<std::uint8_t>;

std::ptrdiff_t file_count(const TemporaryDirectory& directory) {
  return std::distance(std::filesystem::directory_iterator(directory.path()), std::filesystem::directory_iterator());
}

/// Returns a smooth image, which a JPEG changes little.
Image gradient(int width, int height) {
  Image image{width, height, {}};
  for (int y = 0; y < height; ++y) {
    for (int x = 0; x < width; ++x) {
      image.rgb.push_back(static_cast<std::uint8_t>(255 * x / width));
      image.rgb.push_back(static_cast<std::uint8_t>(255 * y / height));
      image.rgb.push_back(100);
    }
  }
  return image;
}

/// Returns a PNG. `samples` are in the file's format, without padding; `palette` is for PNG_COLOR_TYPE_PALETTE.
Bytes png_of(int width, int height, int bit_depth, int colour_type, const Bytes& samples,
             const std::vector<png_color>& palette = {}) {
  png_structp writer = png_create_write_struct(PNG_LIBPNG_VER_STRING, nullptr, nullptr, nullptr);
  png_infop info = png_create_info_struct(writer);
  Bytes bytes;
  png_set_write_fn(
      writer, &bytes,
      [](png_structp png, png_bytep data, std::size_t size) {
        auto* target = static_cast<Bytes*>(png_get_io_ptr(png));
        target->insert(target->end(), data, data + size);
      },
      [](png_structp) {});
  png_set_IHDR(writer, info, static_cast<png_uint_32>(width), static_cast<png_uint_32>(height), bit_depth, colour_type,
               PNG_INTERLACE_NONE, PNG_COMPRESSION_TYPE_DEFAULT, PNG_FILTER_TYPE_DEFAULT);
  if (!palette.empty()) png_set_PLTE(writer, info, palette.data(), static_cast<int>(palette.size()));
  png_write_info(writer, info);
  const std::size_t row_size = png_get_rowbytes(writer, info);
  REQUIRE(samples.size() == row_size * static_cast<std::size_t>(height));
  for (int y = 0; y < height; ++y) png_write_row(writer, samples.data() + static_cast<std::size_t>(y) * row_size);
  png_write_end(writer, info);
  png_destroy_write_struct(&writer, &info);
  return bytes;
}

Bytes encode_jpeg(int width, int height, int pixel_format, int subsampling, const Bytes& samples, int flags = 0) {
  const std::unique_ptr<void, int (*)(tjhandle)> encoder(tjInitCompress(), &tjDestroy);
  unsigned char* data = nullptr;
  unsigned long size = 0;
  const int status =
      tjCompress2(encoder.get(), samples.data(), width, 0, height, pixel_format, &data, &size, subsampling, 95, flags);
  const std::unique_ptr<unsigned char, void (*)(unsigned char*)> owner(data, &tjFree);
  REQUIRE(status == 0);
  return Bytes(data, data + size);
}

Bytes encode_jpeg(const Image& image, int flags = 0) {
  return encode_jpeg(image.width, image.height, TJPF_RGB, TJSAMP_444, image.rgb, flags);
}

void put_big_endian(Bytes& bytes, std::size_t offset, std::uint32_t value, int size) {
  for (int i = 0; i < size; ++i) {
    bytes.at(offset + static_cast<std::size_t>(i)) = static_cast<std::uint8_t>(value >> (8 * (size - 1 - i)));
  }
}

/// Returns the PNG with another size in its header, and a matching checksum.
Bytes with_png_size(Bytes bytes, std::uint32_t width, std::uint32_t height) {
  put_big_endian(bytes, 16, width, 4);
  put_big_endian(bytes, 20, height, 4);
  std::uint32_t crc = 0xFFFFFFFF;
  for (std::size_t i = 12; i < 29; ++i) {
    crc ^= bytes[i];
    for (int bit = 0; bit < 8; ++bit) crc = (crc >> 1) ^ ((crc & 1) != 0 ? 0xEDB88320U : 0U);
  }
  put_big_endian(bytes, 29, ~crc, 4);
  return bytes;
}

Bytes with_jpeg_size(Bytes bytes, std::uint32_t width, std::uint32_t height) {
  const Bytes start_of_frame{0xFF, 0xC0};
  const auto found = std::search(bytes.begin(), bytes.end(), start_of_frame.begin(), start_of_frame.end());
  REQUIRE(found != bytes.end());
  const auto offset = static_cast<std::size_t>(found - bytes.begin());
  put_big_endian(bytes, offset + 5, height, 2);
  put_big_endian(bytes, offset + 7, width, 2);
  return bytes;
}

int largest_difference(const Image& a, const Image& b) {
  REQUIRE(a.width == b.width);
  REQUIRE(a.height == b.height);
  REQUIRE(a.rgb.size() == b.rgb.size());
  int largest = 0;
  for (std::size_t i = 0; i < a.rgb.size(); ++i) largest = std::max(largest, std::abs(a.rgb[i] - b.rgb[i]));
  return largest;
}

Colour pixel(const Image& image, int x, int y) {
  const std::size_t offset =
      (static_cast<std::size_t>(y) * static_cast<std::size_t>(image.width) + static_cast<std::size_t>(x)) * 3;
  return {image.rgb.at(offset), image.rgb.at(offset + 1), image.rgb.at(offset + 2)};
}

/// Returns the message of the ImageError that decoding throws; empty if it throws none.
std::string decoding_error(const Bytes& bytes) {
  try {
    decode_image(bytes, "in.bin");
  } catch (const ImageError& error) {
    return error.what();
  }
  return "";
}

void write_bytes(const std::string& path, const Bytes& bytes) {
  std::ofstream file(path, std::ios::binary);
  file.write(reinterpret_cast<const char*>(bytes.data()), static_cast<std::streamsize>(bytes.size()));
}

}  // namespace

TEST_CASE("a PNG decodes to the pixels that were encoded") {
  const Image image = gradient(37, 23);
  const Image decoded = decode_image(encode_png(image), "in.png");
  CHECK(decoded.width == 37);
  CHECK(decoded.height == 23);
  CHECK(decoded.rgb == image.rgb);
}

TEST_CASE("a JPEG decodes to nearly the pixels that were encoded") {
  const Image image = gradient(64, 48);
  CHECK(largest_difference(decode_image(encode_jpeg(image), "in.jpg"), image) <= 8);
  CHECK(largest_difference(decode_image(encode_jpeg(image, TJFLAG_PROGRESSIVE), "in.jpg"), image) <= 8);
}

TEST_CASE("the content determines the format, not the name") {
  const Image image = gradient(16, 16);
  CHECK(decode_image(encode_png(image), "in.jpg").rgb == image.rgb);
  CHECK(largest_difference(decode_image(encode_jpeg(image), "in.png"), image) <= 8);
}

TEST_CASE("grey images become RGB") {
  CHECK(decode_image(png_of(2, 1, 8, PNG_COLOR_TYPE_GRAY, {10, 200}), "in.png").rgb ==
        Bytes{10, 10, 10, 200, 200, 200});
  CHECK(decode_image(png_of(8, 1, 1, PNG_COLOR_TYPE_GRAY, {0b10000000}), "in.png").rgb[0] == 255);
  const Image decoded = decode_image(encode_jpeg(8, 8, TJPF_GRAY, TJSAMP_GRAY, Bytes(64, 130)), "in.jpg");
  CHECK(decoded.rgb == Bytes(64 * 3, 130));
}

TEST_CASE("palette PNGs become RGB") {
  const Bytes bytes = png_of(2, 1, 8, PNG_COLOR_TYPE_PALETTE, {1, 0}, {{1, 2, 3}, {40, 50, 60}});
  CHECK(decode_image(bytes, "in.png").rgb == Bytes{40, 50, 60, 1, 2, 3});
}

TEST_CASE("an alpha channel is dropped without a change of the colours") {
  CHECK(decode_image(png_of(2, 1, 8, PNG_COLOR_TYPE_RGBA, {1, 2, 3, 0, 40, 50, 60, 128}), "in.png").rgb ==
        Bytes{1, 2, 3, 40, 50, 60});
  CHECK(decode_image(png_of(2, 1, 8, PNG_COLOR_TYPE_GRAY_ALPHA, {10, 0, 200, 128}), "in.png").rgb ==
        Bytes{10, 10, 10, 200, 200, 200});
}

TEST_CASE("16-bit PNGs keep their brightness") {
  const Bytes samples{0x00, 0x00, 0x40, 0x40, 0xFF, 0xFF};
  CHECK(decode_image(png_of(1, 1, 16, PNG_COLOR_TYPE_RGB, samples), "in.png").rgb == Bytes{0x00, 0x40, 0xFF});
  CHECK(decode_image(png_of(1, 1, 16, PNG_COLOR_TYPE_GRAY, {0x80, 0x80}), "in.png").rgb == Bytes(3, 0x80));
}

TEST_CASE("16-bit samples give their high byte, as in Pillow") {
  const Bytes samples{0x12, 0xFF, 0x40, 0x00, 0xFE, 0xFF};
  CHECK(decode_image(png_of(1, 1, 16, PNG_COLOR_TYPE_RGB, samples), "in.png").rgb == Bytes{0x12, 0x40, 0xFE});
}

TEST_CASE("a PNG's gamma does not change the pixels") {
  const Image image = gradient(16, 16);
  const Bytes gamma{0, 0, 0, 4, 'g', 'A', 'M', 'A', 0, 1, 0x86, 0xA0, 0x31, 0xE8, 0x96, 0x5F};  // 1.0, linear
  Bytes bytes = encode_png(image);
  bytes.insert(bytes.begin() + 33, gamma.begin(), gamma.end());
  CHECK(decode_image(bytes, "in.png").rgb == image.rgb);
}

TEST_CASE("a CMYK JPEG with inverted inks becomes RGB") {
  Bytes inks;
  for (int i = 0; i < 64; ++i) inks.insert(inks.end(), {200, 100, 50, 255});
  const Image decoded = decode_image(encode_jpeg(8, 8, TJPF_CMYK, TJSAMP_444, inks), "in.jpg");
  REQUIRE(decoded.rgb.size() == 64 * 3);
  const Colour colour = pixel(decoded, 4, 4);
  CHECK(std::abs(colour[0] - 200) <= 3);
  CHECK(std::abs(colour[1] - 100) <= 3);
  CHECK(std::abs(colour[2] - 50) <= 3);
}

TEST_CASE("stray bytes before a JPEG's end do not prevent decoding") {
  const Image image = gradient(24, 24);
  const Bytes whole = encode_jpeg(image);
  Bytes bytes = whole;
  bytes.insert(bytes.end() - 2, 40, 0x20);
  const Image decoded = decode_image(bytes, "in.jpg");
  CHECK(decoded.rgb == decode_image(whole, "in.jpg").rgb);
  CHECK(decoded.warning.find("extraneous bytes before marker 0xd9") != std::string::npos);
  CHECK(decode_image(whole, "in.jpg").warning.empty());
  bytes.resize(bytes.size() - 2);  // and truncated
  CHECK(decoding_error(bytes).find("undamaged JPEG") != std::string::npos);
}

TEST_CASE("a file that is truncated anywhere is refused") {
  const Image image = gradient(24, 24);
  for (const Bytes& whole : {encode_png(image), encode_jpeg(image), encode_jpeg(image, TJFLAG_PROGRESSIVE)}) {
    REQUIRE(decoding_error(whole).empty());
    for (std::size_t size = 0; size < whole.size(); ++size) {
      CAPTURE(size);
      CHECK(!decoding_error(Bytes(whole.begin(), whole.begin() + static_cast<std::ptrdiff_t>(size))).empty());
    }
  }
}

TEST_CASE("bytes after a complete image are ignored") {
  const Image image = gradient(24, 24);
  for (Bytes bytes : {encode_png(image), encode_jpeg(image)}) {
    bytes.insert(bytes.end(), 100, 0);
    CHECK(decoding_error(bytes).empty());
  }
}

/// Changes each byte in turn, and returns how many of the files are refused; `check` gets what the others decode to.
template <typename Check>
static int refused_when_damaged(const Bytes& whole, const Check& check) {
  int refused = 0;
  for (std::size_t i = 0; i < whole.size(); ++i) {
    CAPTURE(i);
    Bytes damaged = whole;
    damaged[i] ^= 0x55;
    if (decoding_error(damaged).empty()) {
      check(decode_image(damaged, "in"));
    } else {
      ++refused;
    }
  }
  return refused;
}

TEST_CASE("a damaged PNG is refused if a pixel could differ") {
  const Image image = gradient(24, 24);
  CHECK(refused_when_damaged(encode_png(image), [&](const Image& decoded) { CHECK(decoded.rgb == image.rgb); }) > 0);
}

TEST_CASE("a damaged JPEG is refused or decodes to a complete image") {
  const auto check_whole = [](const Image& decoded) {
    CHECK(decoded.rgb.size() == static_cast<std::size_t>(decoded.width) * static_cast<std::size_t>(decoded.height) * 3);
  };
  CHECK(refused_when_damaged(encode_jpeg(gradient(24, 24)), check_whole) > 0);
}

TEST_CASE("a file that is not an image is refused with its first bytes") {
  CHECK(decoding_error({}) ==
        "hybrid_rt[image]: in.bin: expected a JPEG or PNG, got an empty file. Convert the image to one of these "
        "formats.");
  CHECK(decoding_error({'G', 'I', 'F', '8', '9', 'a', 1, 2, 3}) ==
        "hybrid_rt[image]: in.bin: expected a JPEG or PNG, got a file that starts with 47 49 46 38 39 61 01 02. "
        "Convert the image to one of these formats.");
  CHECK(decoding_error({0x89, 'P', 'N', 'G', '\r', '\n', 0x1A, '\n', 1, 2, 3}).find("undamaged PNG") !=
        std::string::npos);
  CHECK(decoding_error({0xFF, 0xD8, 0xFF, 0xE0, 1, 2, 3}).find("undamaged JPEG") != std::string::npos);
}

TEST_CASE("a size in the header beyond the limits is refused") {
  const Image image = gradient(8, 8);
  const std::string refusal =
      "hybrid_rt[image]: in.bin: expected at most 16384 pixels per side and 100 megapixels, got ";
  for (const auto& [width, height] : {std::pair{60000U, 60000U}, {16385U, 1U}, {1U, 16385U}, {10001U, 10000U}}) {
    const std::string expected = refusal + std::to_string(width) + "x" + std::to_string(height) +
                                 ". Scale the image down, or split it into tiles.";
    CHECK(decoding_error(with_png_size(encode_png(image), width, height)) == expected);
    CHECK(decoding_error(with_jpeg_size(encode_jpeg(image), width, height)) == expected);
  }
}

TEST_CASE("an image is read from a file") {
  const TemporaryDirectory directory;
  const Image image = gradient(300, 200);
  write_bytes(directory.file("in.png"), encode_png(image));
  CHECK(read_image(directory.file("in.png")).rgb == image.rgb);
}

TEST_CASE("a missing file and a directory are refused with the reason") {
  const TemporaryDirectory directory;
  CHECK_THROWS_WITH_AS(read_image("/nonexistent/in.png"),
                       "hybrid_rt[image]: /nonexistent/in.png: expected a readable file, got No such file or "
                       "directory. Check the path and its permissions.",
                       ImageError);
  CHECK_THROWS_AS(read_image(directory.file("")), ImageError);
}

TEST_CASE("a written image reads back and may replace an older file") {
  const TemporaryDirectory directory;
  const std::string path = directory.file("out.png");
  write_png(gradient(5, 5), path);
  const Image image = gradient(31, 17);
  write_png(image, path);
  const Image read = read_image(path);
  CHECK(read.width == 31);
  CHECK(read.height == 17);
  CHECK(read.rgb == image.rgb);
  CHECK(file_count(directory) == 1);
}

TEST_CASE("a failed write leaves the old file unchanged and nothing else") {
  const TemporaryDirectory directory;
  const Image image = gradient(5, 5);
  CHECK_THROWS_AS(write_png(image, directory.file("missing/out.png")), ImageError);
  CHECK(file_count(directory) == 0);

  const std::string path = directory.file("out.png");
  write_png(image, path);
  CHECK_THROWS_AS(write_png(Image{}, path), ImageError);
  CHECK(read_image(path).rgb == image.rgb);
  CHECK(file_count(directory) == 1);
}

TEST_CASE("a write replaces neither a directory nor a device") {
  const TemporaryDirectory directory;
  std::filesystem::create_directory(directory.file("out.png"));
  CHECK_THROWS_AS(write_png(gradient(5, 5), directory.file("out.png")), ImageError);
  CHECK_THROWS_WITH_AS(write_png(gradient(5, 5), "/dev/null"),
                       "hybrid_rt[image]: /dev/null: expected a new or a regular file, got something else under "
                       "this name. Choose another name.",
                       ImageError);
  CHECK(file_count(directory) == 1);
}

TEST_CASE("a box is drawn as an outline of two pixels in its label's colour") {
  const Image original = gradient(100, 80);
  Image image = original;
  annotate(image, std::vector<Annotation>{{{20, 30, 60, 70}, 3, ""}});
  const Colour colour = label_colour(3);
  for (const auto& [x, y] : {std::pair{20, 30}, {21, 50}, {58, 50}, {59, 69}, {40, 31}, {40, 68}}) {
    CAPTURE(x);
    CAPTURE(y);
    CHECK(pixel(image, x, y) == colour);
  }
  for (const auto& [x, y] : {std::pair{19, 50}, {22, 50}, {57, 50}, {60, 50}, {40, 29}, {40, 32}, {40, 67}, {40, 70}}) {
    CAPTURE(x);
    CAPTURE(y);
    CHECK(pixel(image, x, y) == pixel(original, x, y));
  }
}

TEST_CASE("the text is written above its box, or inside at the upper edge") {
  const Image original = gradient(100, 80);
  for (const float top : {40.0F, 0.0F}) {
    Image with_text = original;
    Image without_text = original;
    annotate(with_text, std::vector<Annotation>{{{20, top, 90, 75}, 1, "cat", "0.91"}});
    annotate(without_text, std::vector<Annotation>{{{20, top, 90, 75}, 1, ""}});
    CHECK(with_text.rgb != without_text.rgb);
    const int text_top = top > 11 ? static_cast<int>(top) - 11 : 0;
    CHECK(pixel(with_text, 20, text_top) == label_colour(1));
    CHECK(pixel(with_text, 5, text_top) == pixel(original, 5, text_top));
  }
}

TEST_CASE("boxes that are outside, infinite or inverted stay within the image") {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  const Image original = gradient(100, 80);
  Image image = original;
  annotate(image, std::vector<Annotation>{{{-1e30F, -kInfinity, 1e30F, kInfinity}, 1, ""},
                                          {{500, 500, 600, 600}, 2, ""},
                                          {{-90, -90, -50, -50}, 3, ""}});
  CHECK(image.rgb == original.rgb);
  annotate(image, std::vector<Annotation>{{{60, 70, 20, 30}, 1, "inverted"}, {{0, 0, 100, 80}, -7, "frame"}});
  CHECK(image.rgb.size() == original.rgb.size());
  CHECK(pixel(image, 99, 79) == label_colour(-7));
}

TEST_CASE("a box with a NaN coordinate is omitted") {
  const Image original = gradient(100, 80);
  Image image = original;
  annotate(image, std::vector<Annotation>{{{std::nanf(""), 10, 20, 30}, 1, "nothing"}});
  CHECK(image.rgb == original.rgb);
}

TEST_CASE("any text can be drawn on an image of any size") {
  std::string every_byte;
  for (int c = 0; c < 256; ++c) every_byte += static_cast<char>(c);
  for (const std::string& text : {every_byte, every_byte.substr(128), std::string(10'000, '&'), std::string("~~~")}) {
    Image tiny = gradient(1, 1);
    annotate(tiny, std::vector<Annotation>{{{0, 0, 1, 1}, 1, text}});
    CHECK(tiny.rgb.size() == 3);
    Image large = gradient(900, 850);
    const Image original = large;
    annotate(large, std::vector<Annotation>{{{300, 300, 301, 301}, 1, text}});
    CHECK(large.rgb != original.rgb);
  }
}

/// Returns the number of pixels that differ in the columns from `left` to before `right`.
std::ptrdiff_t changed(const Image& a, const Image& b, int left, int right) {
  std::ptrdiff_t count = 0;
  for (int y = 0; y < a.height; ++y) {
    for (int x = left; x < right; ++x) count += pixel(a, x, y) != pixel(b, x, y) ? 1 : 0;
  }
  return count;
}

TEST_CASE("a caption is readable text on a filled rectangle of the label's colour") {
  for (const std::int64_t label : {1, 2}) {  // a dark colour and a light one
    Image image{200, 100, std::vector<std::uint8_t>(200 * 100 * 3, 128)};
    annotate(image, std::vector<Annotation>{{{20, 40, 180, 90}, label, "cat", "0.91"}});
    const Colour background = label_colour(label);
    const Colour ink = hybrid_rt::apps::text_colour(background);
    int of_ink = 0;
    for (int y = 29; y < 40; ++y) {
      for (int x = 20; x < 40; ++x) {
        const Colour found = pixel(image, x, y);
        CHECK((found == background || found == ink));
        of_ink += found == ink ? 1 : 0;
      }
    }
    CHECK(of_ink > 20);
  }
}

TEST_CASE("captions lie within the image for every position of a box") {
  const Image original = gradient(160, 120);
  const std::string name = "traffic light";
  for (const auto& box : std::vector<std::array<float, 4>>{
           {0, 0, 20, 20}, {150, 0, 160, 20}, {150, 110, 160, 120}, {-40, -40, 300, 300}, {400, 300, 500, 400}}) {
    Image with_caption = original;
    Image without = original;
    annotate(with_caption, std::vector<Annotation>{{box, 5, name, "0.50"}});
    annotate(without, std::vector<Annotation>{{box, 5, "", ""}});
    // As many pixels as with more room: nothing was cut off.
    Image roomy = original;
    Image roomy_without = original;
    annotate(roomy, std::vector<Annotation>{{{10, 60, 150, 110}, 5, name, "0.50"}});
    annotate(roomy_without, std::vector<Annotation>{{{10, 60, 150, 110}, 5, "", ""}});
    CHECK(changed(with_caption, without, 0, 160) > changed(roomy, roomy_without, 0, 160) * 8 / 10);
  }
}

TEST_CASE("a long name is truncated, but its score is not") {
  const Image original = gradient(300, 100);
  const auto drawn = [&](const std::string& name, const std::string& score) {
    Image image = original;
    annotate(image, std::vector<Annotation>{{{0, 50, 299, 99}, 2, name, score}});
    return image;
  };
  const std::string longest(10'000, 'm');
  CHECK(drawn(longest, "0.50").rgb == drawn(longest + "n", "0.50").rgb);
  CHECK(drawn(longest, "0.50").rgb != drawn(longest, "0.51").rgb);
  CHECK(drawn(std::string(12, 'm'), "0.50").rgb != drawn(std::string(13, 'm'), "0.50").rgb);
}

TEST_CASE("a name is transliterated to ASCII, or replaced with the label's number") {
  const Image original = gradient(300, 100);
  const auto drawn = [&](const std::string& name) {
    Image image = original;
    annotate(image, std::vector<Annotation>{{{0, 50, 299, 99}, 17, name, "0.50"}});
    return image;
  };
  CHECK(drawn("na\u00EFve").rgb == drawn("naive").rgb);
  CHECK(drawn("\u732B").rgb == drawn("17").rgb);
}

TEST_CASE("no outline crosses a caption") {
  Image image = gradient(200, 100);
  annotate(image, std::vector<Annotation>{{{10, 10, 190, 40}, 3, "", ""}, {{20, 45, 180, 90}, 1, "mmmmmmmmmm", "0.5"}});
  const Image both = image;
  image = gradient(200, 100);
  annotate(image, std::vector<Annotation>{{{20, 45, 180, 90}, 1, "mmmmmmmmmm", "0.5"}, {{10, 10, 190, 40}, 3, "", ""}});
  CHECK(pixel(image, 22, 38) == pixel(both, 22, 38));
}

TEST_CASE("the size is read from the header alone") {
  const Image image = gradient(40, 30);
  for (Bytes bytes : {encode_png(image), encode_jpeg(image)}) {
    bytes.resize(bytes.size() * 3 / 4);  // decode_image refuses this
    const auto size = hybrid_rt::apps::read_size(bytes, "cut");
    CHECK(size.width == 40);
    CHECK(size.height == 30);
  }
}

TEST_CASE("custom limits refuse an image by its header") {
  const Bytes bytes = encode_png(gradient(40, 30));
  for (const hybrid_rt::apps::ImageLimits limits :
       {hybrid_rt::apps::ImageLimits{.max_side = 39}, hybrid_rt::apps::ImageLimits{.max_pixels = 1199}}) {
    CHECK_THROWS_AS(decode_image(bytes, "large", limits), ImageError);
    CHECK_THROWS_AS(hybrid_rt::apps::read_size(bytes, "large", limits), ImageError);
  }
}
