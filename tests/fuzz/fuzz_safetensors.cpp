// Feeds bytes to the reader of image tensors. Each body contains images that cover its data, or causes a PayloadError.

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "require.h"
#include "safetensors.h"

namespace {

using hybrid_rt::serve::PictureTensor;
using hybrid_rt::serve::PictureTensorLimits;

void require_sound(std::vector<PictureTensor> pictures, std::span<const std::uint8_t> body,
                   const PictureTensorLimits& limits) {
  require(!pictures.empty() && pictures.size() <= limits.max_pictures, "the number of pictures keeps to its limit");
  for (const PictureTensor& picture : pictures) {
    require(picture.height > 0 && picture.height <= limits.max_side && picture.width > 0 &&
                picture.width <= limits.max_side && picture.height * picture.width <= limits.max_pixels,
            "a picture keeps to the limits");
    const std::size_t value_bytes = picture.type == PictureTensor::Type::kFloats ? sizeof(float) : 1;
    require(picture.data.size() == static_cast<std::size_t>(picture.height * picture.width * 3) * value_bytes,
            "a picture has all its values");
  }
  std::sort(pictures.begin(), pictures.end(),
            [](const PictureTensor& a, const PictureTensor& b) { return a.data.data() < b.data.data(); });
  require(pictures.front().data.data() >= body.data() + 8, "data lies behind the header's length");
  const std::uint8_t* next = pictures.front().data.data();
  for (const PictureTensor& picture : pictures) {
    require(picture.data.data() == next, "data follows data");
    next += picture.data.size();
  }
  require(next == body.data() + body.size(), "data ends with the body");
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::span body(data, size);
  const PictureTensorLimits limits{.max_pictures = 4, .max_side = 64, .max_pixels = 1024, .max_header_bytes = 1024};
  for (const PictureTensorLimits& each : {PictureTensorLimits{}, limits}) {
    try {
      require_sound(hybrid_rt::serve::read_picture_tensors(body, each), body, each);
    } catch (const hybrid_rt::serve::PayloadError& error) {
      require_message(error.what(), "hybrid_rt[serve]: safetensors body");
    }
  }
  return 0;
}
