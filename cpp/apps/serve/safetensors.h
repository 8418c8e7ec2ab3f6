#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

namespace hybrid_rt::serve {

/// Reports a request body that can't be parsed. what() has the form of hybrid_rt::Error (`hybrid_rt[serve]: SUBJECT:
/// expected X, got Y. REMEDY`), which is not used here so that this file and its tests need no torch. It is valid UTF-8
/// of at most a few hundred bytes, whatever was sent.
class PayloadError : public std::runtime_error {
 public:
  PayloadError(std::string_view subject, std::string_view expected, std::string_view got, std::string_view remedy);
};

/// Larger images are refused by the header alone.
struct ImageTensorLimits {
  std::size_t max_images = 16;
  std::int64_t max_side = 16'384;         ///< pixels per side
  std::int64_t max_pixels = 100'000'000;  ///< pixels per image
  std::size_t max_header_bytes = std::size_t{64} << 10;
};

/// An image in a request's body.
struct ImageTensor {
  enum class Type {
    kBytes,   ///< U8 [height, width, 3], RGB, 0..255
    kFloats,  ///< F32 [3, height, width], RGB, little-endian, in 0..1
  };

  std::string name;  ///< valid UTF-8, otherwise unchanged
  Type type = Type::kBytes;
  std::int64_t height = 0;  ///< in pixels, 1..max_side
  std::int64_t width = 0;   ///< in pixels, 1..max_side
  /// Part of the body, and valid only as long as the body: height * width * 3 values, row-major. It is unaligned,
  /// because the header may have any length: copy floats with std::memcpy. check_values() checks the values.
  std::span<const std::uint8_t> data;
};

/// Reads a body of the type application/x-safetensors whose tensors are all images, in the order of their names in the
/// header ("__metadata__" is checked and ignored). Copies no data. The format:
/// https://github.com/huggingface/safetensors#format. As the format requires, the tensors' bytes cover the data without
/// holes and overlaps, in any order, and names are unique. Throws PayloadError for anything else, and if there is no
/// image. Thread-safe.
std::vector<ImageTensor> read_image_tensors(std::span<const std::uint8_t> body, const ImageTensorLimits& limits = {});

/// Throws PayloadError if a float is NaN, or outside of 0..1 by more than half a grey level of 255. Such values come
/// from a forgotten division or a client's own normalization, and the detector would return wrong boxes for them. Reads
/// all values, so call it in a worker. Thread-safe.
void check_values(const ImageTensor& image);

}  // namespace hybrid_rt::serve
