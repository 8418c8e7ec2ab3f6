#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

namespace hybrid_rt::serve {

/// A request's body that can't be understood. what() has the form of hybrid_rt::Error
/// (`hybrid_rt[serve]: SUBJECT: expected X, got Y. REMEDY`), which is not used here so that this file and its tests
/// need no torch. It is valid UTF-8 of at most a few hundred bytes, whatever was sent.
class PayloadError : public std::runtime_error {
 public:
  PayloadError(std::string_view subject, std::string_view expected, std::string_view got, std::string_view remedy);
};

/// What is larger is refused from the header alone.
struct PictureTensorLimits {
  std::size_t max_pictures = 16;
  std::int64_t max_side = 16'384;         ///< of a picture, in pixels
  std::int64_t max_pixels = 100'000'000;  ///< of a picture
  std::size_t max_header_bytes = std::size_t{64} << 10;
};

/// A picture as it stands in a request's body.
struct PictureTensor {
  enum class Type {
    kBytes,   ///< U8 [height, width, 3], RGB, 0..255
    kFloats,  ///< F32 [3, height, width], RGB, little-endian, in 0..1
  };

  std::string name;  ///< valid UTF-8, else as it was sent
  Type type = Type::kBytes;
  std::int64_t height = 0;  ///< in pixels, 1..max_side
  std::int64_t width = 0;   ///< in pixels, 1..max_side
  /// A part of the body, so valid as long as that is: height * width * 3 values, row-major. Unaligned, as the header
  /// has any length: copy floats out by std::memcpy. Their values are check_values()'s.
  std::span<const std::uint8_t> data;
};

/// Reads a body of the type application/x-safetensors whose tensors are all pictures, in the order in which their names
/// stand in the header's text ("__metadata__" is checked and left out). Copies no data. The format:
/// https://github.com/huggingface/safetensors#format. As there, the tensors' bytes follow one another without holes
/// and overlaps from the data's begin to its end, in any order, and no name stands twice. Throws PayloadError for
/// anything else, and for no picture at all. Thread-safe.
std::vector<PictureTensor> read_picture_tensors(std::span<const std::uint8_t> body,
                                                const PictureTensorLimits& limits = {});

/// Throws PayloadError if a float is outside of 0..1 by more than half a grey level of 255, or is no number: with such
/// values, which a forgotten division or a normalization of the client's own makes, the detector would return wrong
/// boxes. Goes through all values, so it is the worker's to call. Thread-safe.
void check_values(const PictureTensor& picture);

}  // namespace hybrid_rt::serve
