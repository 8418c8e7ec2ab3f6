#pragma once

#include <array>
#include <cstdint>
#include <vector>

// How torchvision's BoxCoder makes boxes of codes, for some chosen ones; free of torch. The arithmetic is that of its
// operators one after the other, so that the last bits are the same.

namespace hybrid_rt::operators {

/// (x1, y1, x2, y2), in pixels.
using BoxCorners = std::array<float, 4>;

/// Boxes that are to be moved and scaled by codes (dx, dy, dw, dh).
class BoxDecoding {
 public:
  /// `weights`: of the codes. `longest`: the greatest dw and dh.
  BoxDecoding(const std::array<float, 4>& weights, float longest) : weights_(weights), longest_(longest) {}

  void reserve(int64_t count);
  /// `code`: what the network returned.
  void add(const BoxCorners& box, const std::array<float, 4>& code);
  int64_t size() const { return static_cast<int64_t>(boxes_.size()); }

  /// The logarithms of the factors by which widths and heights grow: [size] each. torch computes their exponentials.
  const std::vector<float>& width_logarithms() const { return width_logarithms_; }
  const std::vector<float>& height_logarithms() const { return height_logarithms_; }

  /// The decoded boxes within an image. `width_factors`, `height_factors`: the exponentials.
  std::vector<BoxCorners> clipped(const float* width_factors, const float* height_factors, float image_height,
                                  float image_width) const;

 private:
  std::array<float, 4> weights_;
  float longest_;
  std::vector<BoxCorners> boxes_;
  std::vector<std::array<float, 2>> shifts_;
  std::vector<float> width_logarithms_;
  std::vector<float> height_logarithms_;
};

/// Returns true if neither side is below `least`; a box with a NaN is not.
bool is_large(const BoxCorners& box, float least);

}  // namespace hybrid_rt::operators
