#include "operators/box_decoding.h"

#include <cstddef>

#include "operators/no_contraction.h"

namespace hybrid_rt::operators {
namespace {

/// NaN stays NaN, as with torch.clamp.
float clamped(float value, float most) { return value < 0.0F ? 0.0F : value > most ? most : value; }

}  // namespace

void BoxDecoding::reserve(int64_t count) {
  boxes_.reserve(count);
  shifts_.reserve(count);
  width_logarithms_.reserve(count);
  height_logarithms_.reserve(count);
}

void BoxDecoding::add(const BoxCorners& box, const std::array<float, 4>& code) {
  const auto limited = [this](float value) { return value > longest_ ? longest_ : value; };
  boxes_.push_back(box);
  shifts_.push_back({code[0] / weights_[0], code[1] / weights_[1]});
  width_logarithms_.push_back(limited(code[2] / weights_[2]));
  height_logarithms_.push_back(limited(code[3] / weights_[3]));
}

std::vector<BoxCorners> BoxDecoding::clipped(const float* width_factors, const float* height_factors,
                                             float image_height, float image_width) const {
  std::vector<BoxCorners> found(boxes_.size());
  for (std::size_t i = 0; i < boxes_.size(); ++i) {
    const auto [x1, y1, x2, y2] = boxes_[i];
    const float width = x2 - x1;
    const float height = y2 - y1;
    const float center_x = shifts_[i][0] * width + (x1 + 0.5F * width);
    const float center_y = shifts_[i][1] * height + (y1 + 0.5F * height);
    const float half_width = 0.5F * (width_factors[i] * width);
    const float half_height = 0.5F * (height_factors[i] * height);
    found[i] = {clamped(center_x - half_width, image_width), clamped(center_y - half_height, image_height),
                clamped(center_x + half_width, image_width), clamped(center_y + half_height, image_height)};
  }
  return found;
}

bool is_large(const BoxCorners& box, float least) { return box[2] - box[0] >= least && box[3] - box[1] >= least; }

}  // namespace hybrid_rt::operators
