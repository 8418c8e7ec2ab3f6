#pragma once

#include <cstdint>
#include <vector>

// Resizes one channel of an image bilinearly and normalises it in the same pass; free of torch.

namespace hybrid_rt::operators {

/// The two input pixels next to each output pixel along an axis, and their weights.
struct ResizeAxis {
  /// Computes them like torch.nn.functional.interpolate(mode="bilinear", align_corners=False).
  ResizeAxis(int64_t input_size, int64_t output_size);

  int64_t size() const { return static_cast<int64_t>(low.size()); }

  std::vector<int32_t> low;
  std::vector<int32_t> high;
  std::vector<float> low_weight;
  std::vector<float> high_weight;
};

/// One channel of an image.
struct ImageChannel {
  const float* data;
  int64_t width;
  int64_t row_stride;
  int64_t column_stride;
  float mean;
  float deviation;
};

/// Resizes rows [first_row .. last_row) of the output, whose rows are `target_stride` elements apart. `target` points
/// to row 0.
void resize_rows(const ImageChannel& channel, const ResizeAxis& rows, const ResizeAxis& columns, int64_t first_row,
                 int64_t last_row, float* target, int64_t target_stride);

}  // namespace hybrid_rt::operators
