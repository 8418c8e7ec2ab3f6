#pragma once

#include <ATen/core/function_schema.h>
#include <ATen/core/ivalue.h>

#include <optional>
#include <utility>
#include <vector>

#include "bundle/recorded_inputs.h"

namespace hybrid_rt {

/// (height, width)
using ImageSize = std::pair<int64_t, int64_t>;

/// Returns forward's arguments with their images, and the masks of the images' size, resized. An image in another
/// argument than the first image's keeps its proportion to that one, as in hybrid_rt/common/image_inputs.py.
std::vector<c10::IValue> resize_images(const std::vector<c10::IValue>& arguments, const std::vector<ImageInput>& images,
                                       const ImageSize& size);

/// Returns black images of the recorded shapes as arguments of forward; nullopt if it needs anything else.
/// \param schema forward's arguments, starting with self
std::optional<std::vector<c10::IValue>> black_images(const std::vector<c10::Argument>& schema,
                                                     const std::vector<ImageInput>& images, c10::Device device);

/// Identifies image arguments by their shapes alone, for a file whose manifest does not record them: floats or uint8
/// [C, H, W] or [N, C, H, W] that are an argument themselves, or a list or tuple that consists of [C, H, W].
std::vector<ImageInput> guessed_images(const std::vector<c10::IValue>& arguments);

}  // namespace hybrid_rt
