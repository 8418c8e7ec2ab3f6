#pragma once

#include <cstdint>
#include <vector>

// Bilinear resizing of one channel of an image, normalised on the way; free of torch.

namespace hybrid_rt::operators {

/// Which two pixels along an axis an output pixel lies between, and their weights.
struct ResizeAxis {
  /// As torch.nn.functional.interpolate(mode="bilinear", align_corners=False).
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

/// Resizes rows [first_row .. last_row) of the output, whose rows are `target_stride` apart; `target` is row 0.
void resize_rows(const ImageChannel& channel, const ResizeAxis& rows, const ResizeAxis& columns, int64_t first_row,
                 int64_t last_row, float* target, int64_t target_stride);

}  // namespace hybrid_rt::operators
