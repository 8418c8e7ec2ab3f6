#pragma once

#include <array>
#include <cstdint>
#include <vector>

// Decodes some boxes as torchvision's BoxCoder does; free of torch. The arithmetic is that of its operators, one after
// the other, so that results are equal to the last bit.

namespace hybrid_rt::operators {

/// (x1, y1, x2, y2), in pixels.
using BoxCorners = std::array<float, 4>;

/// Boxes to be moved and scaled by codes (dx, dy, dw, dh).
class BoxDecoding {
 public:
  /// `weights` are the weights of the codes, `longest` is the maximum of dw and dh.
  BoxDecoding(const std::array<float, 4>& weights, float longest) : weights_(weights), longest_(longest) {}

  void reserve(int64_t count);
  /// Adds a box. `code` is the network's output for it.
  void add(const BoxCorners& box, const std::array<float, 4>& code);
  int64_t size() const { return static_cast<int64_t>(boxes_.size()); }

  /// Returns the logarithms of the factors for widths and heights, [size] each. torch computes their exponentials.
  const std::vector<float>& width_logarithms() const { return width_logarithms_; }
  const std::vector<float>& height_logarithms() const { return height_logarithms_; }

  /// Returns the decoded boxes, clipped to an image. `width_factors` and `height_factors` are the exponentials.
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

/// Returns true if neither side is below `least`; false for a box with a NaN.
bool is_large(const BoxCorners& box, float least);

}  // namespace hybrid_rt::operators
