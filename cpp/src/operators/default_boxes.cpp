#include <ATen/TensorOperators.h>
#include <ATen/ops/clamp.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/mul.h>
#include <c10/core/DefaultDtype.h>

#include <algorithm>
#include <cstdint>
#include <vector>

#include "operators/box_tensors.h"
#include "operators/known_parts.h"

namespace hybrid_rt::operators {
namespace {

constexpr Refuse kRefuseDefaultBoxes{"default_boxes"};

/// Returns the centres of cells as fractions of an image that has room for `cells` of them. torch divides in its
/// default dtype.
std::vector<float> centers(int64_t count, double cells) {
  const bool in_double = c10::get_default_dtype_as_scalartype() == at::kDouble;
  std::vector<float> found(count);
  for (int64_t i = 0; i < count; ++i) {
    found[i] = in_double ? static_cast<float>((static_cast<double>(i) + 0.5) / cells)
                         : (static_cast<float>(i) + 0.5F) / static_cast<float>(cells);
  }
  return found;
}

void check_default_boxes(at::IntArrayRef heights, at::IntArrayRef widths, at::TensorList pairs,
                         at::IntArrayRef image_size, at::IntArrayRef steps) {
  if (heights.size() != widths.size() || heights.size() != pairs.size() ||
      (!steps.empty() && steps.size() != heights.size())) {
    kRefuseDefaultBoxes("heights, widths, pairs and steps of as many levels",
                        c10::str(heights.size(), ", ", widths.size(), ", ", pairs.size(), " and ", steps.size()),
                        "Check the generator's aspect ratios and steps.");
  }
  require_size(kRefuseDefaultBoxes, "image_size", image_size);
  for (size_t level = 0; level < heights.size(); ++level) {
    require_size(kRefuseDefaultBoxes, "a level", {heights[level], widths[level]});
    require_floats(kRefuseDefaultBoxes, pairs[level]);
    if (pairs[level].dim() != 2 || pairs[level].size(1) != 2) {
      kRefuseDefaultBoxes("pairs of shape [A, 2]", describe(pairs[level]),
                          "Pass one row (width, height) per anchor of a cell.");
    }
  }
  if (std::any_of(steps.begin(), steps.end(), [](int64_t step) { return step <= 0; })) {
    kRefuseDefaultBoxes("steps of 1 or more", c10::str(steps), "Check the generator's steps.");
  }
}

}  // namespace

at::Tensor default_boxes(at::IntArrayRef heights, at::IntArrayRef widths, at::TensorList pairs,
                         at::IntArrayRef image_size, at::IntArrayRef steps, bool clip) {
  check_default_boxes(heights, widths, pairs, image_size, steps);
  int64_t count = 0;
  for (size_t level = 0; level < heights.size(); ++level)
    count += heights[level] * widths[level] * pairs[level].size(0);
  at::Tensor boxes = at::empty({count, 4}, at::kFloat);
  float* target = boxes.mutable_data_ptr<float>();
  const auto image_height = static_cast<float>(image_size[0]);
  const auto image_width = static_cast<float>(image_size[1]);
  for (size_t level = 0; level < heights.size(); ++level) {
    const auto cells = [&](int64_t image_side, int64_t side) {
      return steps.empty() ? static_cast<double>(side)
                           : static_cast<double>(image_side) / static_cast<double>(steps[level]);
    };
    const std::vector<float> ys = centers(heights[level], cells(image_size[0], heights[level]));
    const std::vector<float> xs = centers(widths[level], cells(image_size[1], widths[level]));
    const at::Tensor halves = (clip ? pairs[level].clamp(0, 1) : pairs[level]).contiguous().mul(0.5);
    const float* const half = halves.const_data_ptr<float>();
    for (const float y : ys) {
      for (const float x : xs) {
        for (int64_t i = 0; i < 2 * halves.size(0); i += 2) {
          *target++ = (x - half[i]) * image_width;
          *target++ = (y - half[i + 1]) * image_height;
          *target++ = (x + half[i]) * image_width;
          *target++ = (y + half[i + 1]) * image_height;
        }
      }
    }
  }
  return boxes;
}

}  // namespace hybrid_rt::operators
