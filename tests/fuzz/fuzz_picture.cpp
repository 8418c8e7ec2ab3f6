// Feeds bytes to the image decoder. Each result is an image of the stated size, or a PictureError.

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>

#include "picture.h"
#include "require.h"

namespace {

using namespace hybrid_rt::apps;

/// Returns the result of `read`; nothing if it throws a PictureError, whose text is checked.
template <typename Read>
auto result_of(Read read) -> std::optional<decltype(read())> {
  try {
    return read();
  } catch (const PictureError& error) {
    require_message(error.what(), "hybrid_rt[picture]: fuzzed");
    return std::nullopt;
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::span bytes(data, size);
  const PictureLimits limits{.max_side = 4096, .max_pixels = 1'000'000};
  const auto orientation =
      size % 2 == 0 ? hybrid_rt::apps::Orientation::kAsStored : hybrid_rt::apps::Orientation::kExif;
  const auto stated = result_of([&] { return read_size(bytes, "fuzzed", limits, orientation); });
  const auto picture = result_of([&] { return decode_picture(bytes, "fuzzed", limits, orientation); });
  if (stated) {
    require(stated->width > 0 && stated->height > 0, "a picture has pixels");
    require(stated->width <= limits.max_side && stated->height <= limits.max_side &&
                std::int64_t{stated->width} * stated->height <= limits.max_pixels,
            "a picture keeps to the limits");
  }
  if (picture) {
    require(stated && picture->width == stated->width && picture->height == stated->height,
            "a picture has the size that its header states");
    require(picture->rgb.size() == static_cast<std::size_t>(picture->width) * picture->height * 3,
            "a picture has three bytes a pixel");
  }
  return 0;
}
