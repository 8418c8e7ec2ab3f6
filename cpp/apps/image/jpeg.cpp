#include <algorithm>
#include <csetjmp>
#include <cstddef>
#include <cstdio>

// jpeglib.h uses size_t and FILE without including their headers.
#include <jerror.h>
#include <jpeglib.h>

#include "decoders.h"

namespace hybrid_rt::apps {
namespace {

/// Bounds the number of scans times coefficients. A typical progressive image has about ten scans. Each scan visits
/// every coefficient, so a small file with many scans takes long:
/// https://libjpeg-turbo.org/pmwiki/uploads/About/TwoIssueswiththeJPEGStandard.pdf
constexpr std::int64_t kMaxVisits = 1'000'000'000;
constexpr std::int64_t kMinScans = 20;
constexpr std::int64_t kMaxScans = 500;

/// Wraps libjpeg's decoder. Its errors leave by longjmp, so the functions that call it own nothing that needs a
/// destructor.
class JpegDecoder {
 public:
  explicit JpegDecoder(std::span<const std::uint8_t> bytes) : bytes_(bytes) {
    info_.err = jpeg_std_error(&errors_);
    errors_.error_exit = [](j_common_ptr info) { decoder_of(info).fail(); };
    errors_.emit_message = [](j_common_ptr info, int level) { decoder_of(info).take_message(level); };
    progress_.progress_monitor = [](j_common_ptr info) { decoder_of(info).check_scans(); };
    info_.client_data = this;
  }
  JpegDecoder(const JpegDecoder&) = delete;
  JpegDecoder& operator=(const JpegDecoder&) = delete;
  ~JpegDecoder() { jpeg_destroy_decompress(&info_); }

  /// Returns false on failure; message() gives the reason.
  bool read_header() {
    if (setjmp(place_) != 0) return false;
    jpeg_create_decompress(&info_);
    info_.progress = &progress_;
    jpeg_mem_src(&info_, bytes_.data(), static_cast<unsigned long>(bytes_.size()));
    jpeg_read_header(&info_, TRUE);
    return true;
  }

  /// Reads rows with `channels()` bytes per pixel. Returns false on failure; message() gives the reason.
  bool read_rows(std::uint8_t* pixels) {
    if (setjmp(place_) != 0) return false;
    info_.out_color_space = channels() == 4 ? JCS_CMYK : JCS_RGB;
    info_.dct_method = JDCT_ISLOW;
    jpeg_start_decompress(&info_);
    const std::size_t stride = static_cast<std::size_t>(info_.output_width) * static_cast<std::size_t>(channels());
    while (info_.output_scanline < info_.output_height) {
      JSAMPROW row = pixels + info_.output_scanline * stride;
      jpeg_read_scanlines(&info_, &row, 1);
    }
    jpeg_finish_decompress(&info_);
    return true;
  }

  int width() const { return static_cast<int>(info_.image_width); }
  int height() const { return static_cast<int>(info_.image_height); }
  int channels() const { return info_.jpeg_color_space == JCS_CMYK || info_.jpeg_color_space == JCS_YCCK ? 4 : 3; }
  const char* message() const { return message_; }
  /// A defect of the file that did not affect the pixels; empty if there was none.
  const char* warning() const { return warning_; }

 private:
  static JpegDecoder& decoder_of(j_common_ptr info) { return *static_cast<JpegDecoder*>(info->client_data); }

  [[noreturn]] void fail() {
    errors_.format_message(reinterpret_cast<j_common_ptr>(&info_), message_);
    std::longjmp(place_, 1);
  }

  /// libjpeg only warns about a file that ends too early, and invents the rest.
  void take_message(int level) {
    if (level >= 0) return;
    if (errors_.msg_code != JWRN_EXTRANEOUS_DATA) fail();
    errors_.format_message(reinterpret_cast<j_common_ptr>(&info_), warning_);
  }

  void check_scans() {
    const std::int64_t pixels = std::max<std::int64_t>(std::int64_t{width()} * height(), 1);
    if (info_.input_scan_number <= std::clamp(kMaxVisits / pixels, kMinScans, kMaxScans)) return;
    std::snprintf(message_, sizeof message_, "more than %d scans", info_.input_scan_number - 1);
    std::longjmp(place_, 1);
  }

  std::span<const std::uint8_t> bytes_;
  jpeg_decompress_struct info_{};
  jpeg_error_mgr errors_{};
  jpeg_progress_mgr progress_{};
  std::jmp_buf place_{};
  char message_[JMSG_LENGTH_MAX] = "";
  char warning_[JMSG_LENGTH_MAX] = "";
};

ImageSize read_header(JpegDecoder& decoder, const std::string& name, const ImageLimits& limits) {
  if (!decoder.read_header()) throw damaged(name, "JPEG", decoder.message());
  check_size(decoder.width(), decoder.height(), name, limits);
  return {decoder.width(), decoder.height()};
}

/// As in Pillow: a JPEG's inks are inverted, and black reduces each colour.
std::vector<std::uint8_t> rgb_of_cmyk(const std::vector<std::uint8_t>& inks) {
  std::vector<std::uint8_t> rgb;
  rgb.reserve(inks.size() / 4 * 3);
  for (std::size_t i = 0; i < inks.size(); i += 4) {
    const int white = inks[i + 3];
    for (std::size_t channel = 0; channel < 3; ++channel) {
      const int product = (255 - inks[i + channel]) * white + 128;
      rgb.push_back(static_cast<std::uint8_t>(std::clamp(white - (((product >> 8) + product) >> 8), 0, 255)));
    }
  }
  return rgb;
}

}  // namespace

Image decode_jpeg(std::span<const std::uint8_t> bytes, const std::string& name, const ImageLimits& limits) {
  JpegDecoder decoder(bytes);
  const ImageSize size = read_header(decoder, name, limits);
  const auto channels = static_cast<std::size_t>(decoder.channels());
  Image image{size.width, size.height,
              std::vector<std::uint8_t>(static_cast<std::size_t>(size.width) * size.height * channels)};
  if (!decoder.read_rows(image.rgb.data())) throw damaged(name, "JPEG", decoder.message());
  if (channels == 4) image.rgb = rgb_of_cmyk(image.rgb);
  image.warning = decoder.warning();
  return image;
}

ImageSize jpeg_size(std::span<const std::uint8_t> bytes, const std::string& name, const ImageLimits& limits) {
  JpegDecoder decoder(bytes);
  return read_header(decoder, name, limits);
}

}  // namespace hybrid_rt::apps
