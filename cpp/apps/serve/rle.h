#pragma once

#include <cstdint>
#include <string>

namespace hybrid_rt::serve {

/// Returns COCO's compressed run lengths of the pixels that are at least `threshold`, column by column, as pycocotools'
/// encode() writes them (maskApi.c, rleToString). `mask` is [height, width], rows from the top.
std::string run_lengths(const float* mask, std::int64_t height, std::int64_t width, float threshold);

}  // namespace hybrid_rt::serve
