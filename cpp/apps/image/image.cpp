#include "image.h"

#include <fcntl.h>
#include <png.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <memory>
#include <random>
#include <system_error>
#include <utility>

#include "decoders.h"
#include "orientation.h"

namespace hybrid_rt::apps {
namespace {

constexpr std::array<std::uint8_t, 8> kPngMagic{0x89, 'P', 'N', 'G', '\r', '\n', 0x1A, '\n'};

struct FileCloser {
  void operator()(std::FILE* file) const { std::fclose(file); }
};
using File = std::unique_ptr<std::FILE, FileCloser>;

std::string system_message(int error) { return std::generic_category().message(error); }

std::string first_bytes(std::span<const std::uint8_t> bytes) {
  if (bytes.empty()) return "an empty file";
  std::string text = "a file that starts with";
  for (const std::uint8_t byte : bytes.first(std::min<std::size_t>(bytes.size(), 8))) {
    char digits[4];
    std::snprintf(digits, sizeof digits, " %02X", static_cast<unsigned>(byte));
    text += digits;
  }
  return text;
}

ImageError unknown_format(std::span<const std::uint8_t> bytes, const std::string& name) {
  return ImageError(name, "a JPEG or PNG", first_bytes(bytes), "Convert the image to one of these formats.");
}

std::vector<std::uint8_t> read_bytes(const std::string& path) {
  const auto unreadable = [&path](int error) {
    return ImageError(path, "a readable file", system_message(error), "Check the path and its permissions.");
  };
  const File file(std::fopen(path.c_str(), "rbe"));
  if (!file) throw unreadable(errno);

  std::vector<std::uint8_t> bytes;
  std::array<std::uint8_t, 1 << 16> chunk;
  while (const std::size_t count = std::fread(chunk.data(), 1, chunk.size(), file.get())) {
    if (bytes.size() + count > kMaxFileBytes) {
      throw ImageError(path, "at most " + std::to_string(kMaxFileBytes) + " bytes", "more", "Use a smaller file.");
    }
    bytes.insert(bytes.end(), chunk.begin(), chunk.begin() + static_cast<std::ptrdiff_t>(count));
  }
  if (std::ferror(file.get()) != 0) throw unreadable(errno);
  return bytes;
}

/// A new file under a temporary name. The destructor deletes it unless it has been renamed.
class TemporaryFile {
 public:
  explicit TemporaryFile(const std::string& final_path)
      : final_path_(final_path),
        // Not the final name with a suffix: the final name may already have the maximum length.
        path_(std::filesystem::path(final_path)
                  .replace_filename(".hybrid_rt-" + std::to_string(::getpid()) + "-" +
                                    std::to_string(std::random_device{}()) + ".tmp")
                  .string()) {
    // open() instead of mkstemp(), whose files only their owner can read.
    const int descriptor = ::open(path_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    if (descriptor < 0) throw failure(errno);
    file_.reset(::fdopen(descriptor, "wb"));
    if (!file_) {
      const int error = errno;
      ::close(descriptor);
      ::unlink(path_.c_str());
      throw failure(error);
    }
  }
  TemporaryFile(const TemporaryFile&) = delete;
  TemporaryFile& operator=(const TemporaryFile&) = delete;
  ~TemporaryFile() {
    file_.reset();
    if (!renamed_) ::unlink(path_.c_str());
  }

  void write(std::span<const std::uint8_t> bytes) {
    if (std::fwrite(bytes.data(), 1, bytes.size(), file_.get()) != bytes.size()) throw failure(errno);
  }

  void rename() {
    // fsync, so that a full disk or a crash can't leave an empty file under the final name.
    if (std::fflush(file_.get()) != 0 || ::fsync(::fileno(file_.get())) != 0) throw failure(errno);
    if (std::fclose(file_.release()) != 0) throw failure(errno);
    if (std::rename(path_.c_str(), final_path_.c_str()) != 0) throw failure(errno);
    renamed_ = true;
  }

 private:
  ImageError failure(int error) const {
    return ImageError(final_path_, "a file that can be written", system_message(error),
                      "Check that its directory exists, is writable and has space.");
  }

  std::string final_path_;
  std::string path_;
  File file_;
  bool renamed_ = false;
};

}  // namespace

ImageError::ImageError(std::string_view subject, std::string_view expected, std::string_view got,
                       std::string_view remedy)
    : std::runtime_error("hybrid_rt[image]: " + std::string(subject) + ": expected " + std::string(expected) +
                         ", got " + std::string(got) + ". " + std::string(remedy)) {}

void check_size(std::int64_t width, std::int64_t height, const std::string& name, const ImageLimits& limits) {
  if (width <= limits.max_side && height <= limits.max_side && width * height <= limits.max_pixels) return;
  throw ImageError(name,
                   "at most " + std::to_string(limits.max_side) + " pixels per side and " +
                       std::to_string(limits.max_pixels / 1'000'000) + " megapixels",
                   std::to_string(width) + "x" + std::to_string(height),
                   "Scale the image down, or split it into tiles.");
}

ImageError damaged(const std::string& name, const std::string& format, const std::string& message) {
  return ImageError(name, "a complete and undamaged " + format, "\"" + message + "\" from the decoder",
                    "Download or save the image again.");
}

Image decode_image(std::span<const std::uint8_t> bytes, const std::string& name, const ImageLimits& limits,
                   Orientation orientation) {
  const int turn = orientation == Orientation::kExif ? exif_orientation(bytes) : 1;
  if (starts_with(bytes, kJpegMagic)) return upright(decode_jpeg(bytes, name, limits), turn);
  if (starts_with(bytes, kPngMagic)) return upright(decode_png(bytes, name, limits), turn);
  throw unknown_format(bytes, name);
}

ImageSize read_size(std::span<const std::uint8_t> bytes, const std::string& name, const ImageLimits& limits,
                    Orientation orientation) {
  const bool is_jpeg = starts_with(bytes, kJpegMagic);
  if (!is_jpeg && !starts_with(bytes, kPngMagic)) throw unknown_format(bytes, name);
  ImageSize size = is_jpeg ? jpeg_size(bytes, name, limits) : png_size(bytes, name, limits);
  if (orientation == Orientation::kExif && swaps_sides(exif_orientation(bytes))) std::swap(size.width, size.height);
  return size;
}

Image read_image(const std::string& path, Orientation orientation) {
  return decode_image(read_bytes(path), path, {}, orientation);
}

std::vector<std::uint8_t> encode_png(const Image& image) {
  png_image header{};
  header.version = PNG_IMAGE_VERSION;
  header.width = static_cast<png_uint_32>(image.width);
  header.height = static_cast<png_uint_32>(image.height);
  header.format = PNG_FORMAT_RGB;
  const std::unique_ptr<png_image, void (*)(png_imagep)> guard(&header, &png_image_free);
  std::vector<std::uint8_t> png(PNG_IMAGE_PNG_SIZE_MAX(header));
  png_alloc_size_t size = png.size();
  if (png_image_write_to_memory(&header, png.data(), &size, 0, image.rgb.data(), 0, nullptr) == 0) {
    throw ImageError("image", "one that can be encoded", "\"" + std::string(header.message) + "\" from the encoder",
                     "Use a smaller one.");
  }
  png.resize(size);
  return png;
}

void write_png(const Image& image, const std::string& path) {
  // Renaming would replace /dev/null or a pipe by a regular file.
  std::error_code ignored;
  const std::filesystem::file_status status = std::filesystem::status(path, ignored);
  if (std::filesystem::exists(status) && !std::filesystem::is_regular_file(status)) {
    throw ImageError(path, "a new or a regular file", "something else under this name", "Choose another name.");
  }

  const std::vector<std::uint8_t> png = encode_png(image);
  TemporaryFile file(path);
  file.write(png);
  file.rename();
}

}  // namespace hybrid_rt::apps
