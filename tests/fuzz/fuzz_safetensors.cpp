// Feeds bytes to the reader of image tensors. Each body contains images that cover its data, or causes a PayloadError.

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "require.h"
#include "safetensors.h"

namespace {

using hybrid_rt::serve::ImageTensor;
using hybrid_rt::serve::ImageTensorLimits;

void require_sound(std::vector<ImageTensor> images, std::span<const std::uint8_t> body,
                   const ImageTensorLimits& limits) {
  require(!images.empty() && images.size() <= limits.max_images, "the number of images keeps to its limit");
  for (const ImageTensor& image : images) {
    require(image.height > 0 && image.height <= limits.max_side && image.width > 0 && image.width <= limits.max_side &&
                image.height * image.width <= limits.max_pixels,
            "an image keeps to the limits");
    const std::size_t value_bytes = image.type == ImageTensor::Type::kFloats ? sizeof(float) : 1;
    require(image.data.size() == static_cast<std::size_t>(image.height * image.width * 3) * value_bytes,
            "an image has all its values");
  }
  std::sort(images.begin(), images.end(),
            [](const ImageTensor& a, const ImageTensor& b) { return a.data.data() < b.data.data(); });
  require(images.front().data.data() >= body.data() + 8, "data lies behind the header's length");
  const std::uint8_t* next = images.front().data.data();
  for (const ImageTensor& image : images) {
    require(image.data.data() == next, "data follows data");
    next += image.data.size();
  }
  require(next == body.data() + body.size(), "data ends with the body");
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::span body(data, size);
  const ImageTensorLimits limits{.max_images = 4, .max_side = 64, .max_pixels = 1024, .max_header_bytes = 1024};
  for (const ImageTensorLimits& each : {ImageTensorLimits{}, limits}) {
    try {
      require_sound(hybrid_rt::serve::read_image_tensors(body, each), body, each);
    } catch (const hybrid_rt::serve::PayloadError& error) {
      require_message(error.what(), "hybrid_rt[serve]: safetensors body");
    }
  }
  return 0;
}
