#pragma once

#include <c10/util/ArrayRef.h>

#include <algorithm>
#include <cstdint>
#include <vector>

#include "operators/head_operator_checks.h"
#include "operators/roi_geometry.h"

// The points of a box for the CPU kernel of roi_align. Include it after the pragmas in roi_align.cpp that forbid fused
// multiply-add.

namespace hybrid_rt::operators {

/// The rows or columns of a box. Bilinear interpolation is the product of the two.
template <typename T>
struct Axis {
  std::vector<Tap<T>> taps;     // without points outside the image; low and high index `pixels`
  std::vector<int64_t> starts;  // taps [starts[i], starts[i + 1]) are those of bin i
  std::vector<int64_t> pixels;  // pixels that the taps need, ascending
};

template <typename T>
struct Box {
  int64_t image;
  T points_per_bin;
  Axis<T> rows;
  Axis<T> columns;

  int64_t pixels() const { return static_cast<int64_t>(rows.pixels.size() * columns.pixels.size()); }
  int64_t first_row() const { return rows.pixels.empty() ? 0 : rows.pixels.front(); }
};

template <typename T>
void sample_axis(T start, T bin_size, int64_t bins, int32_t points, int64_t extent, Axis<T>& axis) {
  axis.starts.reserve(bins + 1);
  axis.starts.push_back(0);
  for (int64_t bin = 0; bin < bins; ++bin) {
    for (int32_t point = 0; point < points; ++point) {
      Tap<T> tap;
      if (!place_point(start, bin_size, static_cast<int32_t>(bin), point, points, extent, tap)) {
        continue;
      }
      const auto [low, high, low_weight, high_weight] = tap;  // local copies stay in registers
      axis.taps.push_back({low, high, low_weight, high_weight});
      axis.pixels.push_back(low);
      axis.pixels.push_back(high);
    }
    axis.starts.push_back(static_cast<int64_t>(axis.taps.size()));
  }
  std::sort(axis.pixels.begin(), axis.pixels.end());
  axis.pixels.erase(std::unique(axis.pixels.begin(), axis.pixels.end()), axis.pixels.end());
  const auto index_of = [&axis](int32_t pixel) {
    return static_cast<int32_t>(std::lower_bound(axis.pixels.begin(), axis.pixels.end(), pixel) - axis.pixels.begin());
  };
  for (Tap<T>& tap : axis.taps) {
    tap.low = index_of(tap.low);
    tap.high = index_of(tap.high);
  }
}

template <typename T>
Box<T> sample_box(const T* roi, int64_t stride, const Pooling& pooling, at::IntArrayRef input_sizes, int64_t index) {
  Placement<T> placement;
  check_box(place_box(roi, stride, pooling, input_sizes[0], placement), input_sizes[0], index);
  Box<T> box;
  box.image = placement.image;
  box.points_per_bin = placement.points_per_bin;
  sample_axis<T>(placement.top, placement.bin_height, pooling.height, placement.rows, input_sizes[2], box.rows);
  sample_axis<T>(placement.left, placement.bin_width, pooling.width, placement.columns, input_sizes[3], box.columns);
  return box;
}

}  // namespace hybrid_rt::operators
