#pragma once

#include <c10/util/ArrayRef.h>
#include <c10/util/StringUtil.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include "hybrid_rt/error.h"

// Where roi_align samples: the points of a box and their bilinear weights. Included after the pragmas of roi_align.cpp
// that forbid fused multiply-add.

namespace hybrid_rt::operators {

[[noreturn]] inline void refuse(const std::string& expected, const std::string& got, const char* remedy) {
  throw Error(ErrorKind::kInput, "operators", "roi_align", expected, got, remedy);
}

/// One coordinate of a sampling point: between pixels `low` and `high` (indices into Axis::pixels).
template <typename T>
struct Tap {
  int32_t low;
  int32_t high;
  T low_weight;
  T high_weight;
};

/// The rows or the columns of a box: bilinear interpolation is the product of the two.
template <typename T>
struct Axis {
  std::vector<Tap<T>> taps;     // without the points that lie outside the picture
  std::vector<int64_t> starts;  // taps [starts[i], starts[i + 1]) are those of bin i
  std::vector<int64_t> pixels;  // those that the taps need, ascending
};

template <typename T>
struct Box {
  int64_t picture;
  T points_per_bin;
  Axis<T> rows;
  Axis<T> columns;

  int64_t pixels() const { return static_cast<int64_t>(rows.pixels.size() * columns.pixels.size()); }
  int64_t first_row() const { return rows.pixels.empty() ? 0 : rows.pixels.front(); }
};

// torchvision's arithmetic, rounding each step to T (float16 too): a change of the order changes the last bits.
template <typename T>
void sample_axis(T start, T bin_size, int64_t bins, int64_t points, int64_t extent, Axis<T>& axis) {
  axis.starts.reserve(bins + 1);
  axis.starts.push_back(0);
  for (int64_t bin = 0; bin < bins; ++bin) {
    for (int64_t point = 0; point < points; ++point) {
      T position = start + static_cast<int>(bin) * bin_size +
                   static_cast<T>(static_cast<int>(point) + .5f) * bin_size / static_cast<T>(static_cast<int>(points));
      if (!(position >= -1.0 && static_cast<double>(position) <= static_cast<double>(extent))) {
        continue;
      }
      if (position <= 0) {
        position = 0;
      }
      auto low = static_cast<int32_t>(position);
      int32_t high = low + 1;
      if (low >= extent - 1) {
        low = high = static_cast<int32_t>(extent - 1);
        position = static_cast<T>(low);
      }
      const T high_weight = position - low;
      const T low_weight = 1. - high_weight;
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

struct Pooling {
  double spatial_scale;
  int64_t height;  // of the output
  int64_t width;
  int64_t sampling_ratio;
  bool aligned;
};

/// The points per bin along one axis; as a double, because a box can be of any size.
template <typename T>
double points_along(T extent, int64_t bins, int64_t sampling_ratio) {
  if (sampling_ratio > 0) {
    return static_cast<double>(sampling_ratio);
  }
  const double points = std::ceil(static_cast<double>(static_cast<T>(extent / static_cast<int>(bins))));
  return std::isfinite(points) ? std::max(points, 0.0) : 0.0;  // not finite: none of the points would be inside
}

template <typename T>
Box<T> sample_box(const T* roi, int64_t stride, const Pooling& pooling, at::IntArrayRef input_sizes, int64_t index) {
  const T picture = roi[0];
  if (!(picture >= 0 && static_cast<double>(picture) < static_cast<double>(input_sizes[0]))) {
    refuse(c10::str("rois[:, 0] to index a batch of ", input_sizes[0]),
           c10::str(static_cast<double>(picture), " in row ", index), "Number the pictures from 0.");
  }
  const T scale = static_cast<T>(pooling.spatial_scale);
  const T offset = static_cast<T>(pooling.aligned ? 0.5 : 0.0);
  const T left = roi[stride] * scale - offset;
  const T top = roi[2 * stride] * scale - offset;
  const T right = roi[3 * stride] * scale - offset;
  const T bottom = roi[4 * stride] * scale - offset;
  T width = right - left;
  T height = bottom - top;
  if (!pooling.aligned) {
    width = std::max(width, static_cast<T>(1.));
    height = std::max(height, static_cast<T>(1.));
  }
  const double rows = points_along(height, pooling.height, pooling.sampling_ratio);
  const double columns = points_along(width, pooling.width, pooling.sampling_ratio);
  const double points = rows * columns * static_cast<double>(pooling.height) * static_cast<double>(pooling.width);
  if (points > std::numeric_limits<int32_t>::max()) {
    refuse(c10::str("at most ", std::numeric_limits<int32_t>::max(), " sampling points per box"),
           c10::str(points, " in row ", index), "Lower sampling_ratio or clip the boxes to the picture.");
  }
  Box<T> box;
  box.picture = static_cast<int64_t>(picture);
  box.points_per_bin = static_cast<T>(static_cast<int>(std::max(rows * columns, 1.0)));
  const bool any = points > 0;
  sample_axis<T>(top, height / static_cast<T>(static_cast<int>(pooling.height)), pooling.height,
                 any ? static_cast<int64_t>(rows) : 0, input_sizes[2], box.rows);
  sample_axis<T>(left, width / static_cast<T>(static_cast<int>(pooling.width)), pooling.width,
                 any ? static_cast<int64_t>(columns) : 0, input_sizes[3], box.columns);
  return box;
}

}  // namespace hybrid_rt::operators
