#include "operators/image_rows.h"

#include <algorithm>
#include <array>
#include <cmath>

#include "operators/no_contraction.h"

namespace hybrid_rt::operators {
namespace {

HYBRID_RT_CLONES void normalize_row(const float* source, int64_t stride, int64_t width, float mean, float deviation,
                                    float* __restrict target) {
  if (stride == 1) {
    for (int64_t x = 0; x < width; ++x) target[x] = (source[x] - mean) / deviation;
  } else {
    for (int64_t x = 0; x < width; ++x) target[x] = (source[x * stride] - mean) / deviation;
  }
}

HYBRID_RT_CLONES void resize_row(const float* __restrict source, const int32_t* __restrict low,
                                 const int32_t* __restrict high, const float* __restrict low_weight,
                                 const float* __restrict high_weight, int64_t width, float* __restrict target) {
  for (int64_t x = 0; x < width; ++x) target[x] = source[low[x]] * low_weight[x] + source[high[x]] * high_weight[x];
}

HYBRID_RT_CLONES void blend_rows(const float* __restrict low, const float* __restrict high, float low_weight,
                                 float high_weight, int64_t width, float* __restrict target) {
  for (int64_t x = 0; x < width; ++x) target[x] = low[x] * low_weight + high[x] * high_weight;
}

/// The last two rows of an image that were normalised and resized horizontally.
class ResizedRows {
 public:
  ResizedRows(const ImageChannel& channel, const ResizeAxis& columns)
      : channel_(channel), columns_(columns), normalized_(channel.width), rows_{{{-1, {}}, {-1, {}}}} {
    for (Row& row : rows_) row.values.resize(columns.size());
  }

  /// Returns a row, which stays valid until the second-next row is requested.
  const float* operator[](int32_t number) {
    for (Row& row : rows_) {
      if (row.number == number) return row.values.data();
    }
    std::swap(rows_[0], rows_[1]);
    Row& row = rows_[1];  // the older one
    row.number = number;
    normalize_row(channel_.data + number * channel_.row_stride, channel_.column_stride, channel_.width, channel_.mean,
                  channel_.deviation, normalized_.data());
    resize_row(normalized_.data(), columns_.low.data(), columns_.high.data(), columns_.low_weight.data(),
               columns_.high_weight.data(), columns_.size(), row.values.data());
    return row.values.data();
  }

 private:
  struct Row {
    int32_t number;
    std::vector<float> values;
  };

  const ImageChannel& channel_;
  const ResizeAxis& columns_;
  std::vector<float> normalized_;
  std::array<Row, 2> rows_;
};

}  // namespace

ResizeAxis::ResizeAxis(int64_t input_size, int64_t output_size) {
  const float scale = static_cast<float>(input_size) / static_cast<float>(output_size);
  for (int64_t i = 0; i < output_size; ++i) {
    // A single rounding, as in torch's kernels for CPUs that have this instruction.
    const float position = std::max(std::fma(scale, static_cast<float>(i) + 0.5F, -0.5F), 0.0F);
    const auto pixel = std::min(static_cast<int64_t>(position), input_size - 1);
    low.push_back(static_cast<int32_t>(pixel));
    high.push_back(static_cast<int32_t>(std::min(pixel + 1, input_size - 1)));
    const float weight = std::clamp(position - static_cast<float>(pixel), 0.0F, 1.0F);
    low_weight.push_back(1.0F - weight);
    high_weight.push_back(weight);
  }
}

void resize_rows(const ImageChannel& channel, const ResizeAxis& rows, const ResizeAxis& columns, int64_t first_row,
                 int64_t last_row, float* target, int64_t target_stride) {
  ResizedRows resized(channel, columns);
  for (int64_t y = first_row; y < last_row; ++y) {
    const float* const low = resized[rows.low[y]];
    const float* const high = resized[rows.high[y]];
    blend_rows(low, high, rows.low_weight[y], rows.high_weight[y], columns.size(), target + y * target_stride);
  }
}

}  // namespace hybrid_rt::operators
