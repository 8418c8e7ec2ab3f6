// Feeds bytes to the image decoder. Each result is an image of the stated size, or an ImageError.

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>

#include "image.h"
#include "require.h"

namespace {

using namespace hybrid_rt::apps;

/// Returns the result of `read`; nothing if it throws an ImageError, whose text is checked.
template <typename Read>
auto result_of(Read read) -> std::optional<decltype(read())> {
  try {
    return read();
  } catch (const ImageError& error) {
    require_message(error.what(), "hybrid_rt[image]: fuzzed");
    return std::nullopt;
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::span bytes(data, size);
  const ImageLimits limits{.max_side = 4096, .max_pixels = 1'000'000};
  const auto orientation =
      size % 2 == 0 ? hybrid_rt::apps::Orientation::kAsStored : hybrid_rt::apps::Orientation::kExif;
  const auto stated = result_of([&] { return read_size(bytes, "fuzzed", limits, orientation); });
  const auto image = result_of([&] { return decode_image(bytes, "fuzzed", limits, orientation); });
  if (stated) {
    require(stated->width > 0 && stated->height > 0, "an image has pixels");
    require(stated->width <= limits.max_side && stated->height <= limits.max_side &&
                std::int64_t{stated->width} * stated->height <= limits.max_pixels,
            "an image keeps to the limits");
  }
  if (image) {
    require(stated && image->width == stated->width && image->height == stated->height,
            "an image has the size that its header states");
    require(image->rgb.size() == static_cast<std::size_t>(image->width) * image->height * 3,
            "an image has three bytes a pixel");
  }
  return 0;
}
