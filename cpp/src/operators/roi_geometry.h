#pragma once

#include <cmath>
#include <cstdint>
#include <limits>

#include "operators/host_device.h"

// Sampling points of roi_align, in one source for CPUs and GPUs, so that both round in the same way. The arithmetic is
// torchvision's and rounds each step to T (float16 too); another order would change the last bits. Operands are of type
// T only, and constants have a type that avoids double arithmetic, which is slow on most GPUs, in the loops.

namespace hybrid_rt::operators {

struct Pooling {
  double spatial_scale;
  int64_t height;  // size of the output
  int64_t width;
  int64_t sampling_ratio;
  bool aligned;
};

/// One coordinate of a sampling point, between pixels `low` and `high`.
template <typename T>
struct Tap {
  int32_t low;
  int32_t high;
  T low_weight;
  T high_weight;
};

/// A box in pixels, and its points: `rows` x `columns` per bin.
template <typename T>
struct Placement {
  int64_t image;
  int32_t rows;
  int32_t columns;
  T top;
  T left;
  T bin_height;
  T bin_width;
  T points_per_bin;  // divisor of a bin's sum, at least 1
};

enum class Fault { kNone, kImage, kPoints };

/// Reason to refuse a box, and the number that caused it.
struct BoxVerdict {
  Fault fault;
  double got;
};

inline constexpr int32_t kMaxPoints = std::numeric_limits<int32_t>::max();
inline constexpr double kMaxDouble = std::numeric_limits<double>::max();

/// Returns the points per bin along one axis, as a double, because a box can have any size.
template <typename T>
HYBRID_RT_HOST_DEVICE inline double points_along(T extent, int64_t bins, int64_t sampling_ratio) {
  if (sampling_ratio > 0) {
    return static_cast<double>(sampling_ratio);
  }
  const double points = std::ceil(static_cast<double>(extent / static_cast<T>(static_cast<int>(bins))));
  return points > 0.0 && points <= kMaxDouble ? points : 0.0;  // not finite: no point would be inside
}

/// Places the box of a row (image, x1, y1, x2, y2), whose numbers are `stride` elements apart. A refused box has no
/// points.
template <typename T>
HYBRID_RT_HOST_DEVICE inline BoxVerdict place_box(const T* roi, int64_t stride, const Pooling& pooling, int64_t images,
                                                  Placement<T>& placement) {
  placement = Placement<T>{0, 0, 0, T(0), T(0), T(0), T(0), T(1)};
  const T image = roi[0];
  if (!(image >= T(0) && static_cast<double>(image) < static_cast<double>(images))) {
    return {Fault::kImage, static_cast<double>(image)};
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
    width = width < T(1) ? T(1) : width;
    height = height < T(1) ? T(1) : height;
  }
  const double rows = points_along<T>(height, pooling.height, pooling.sampling_ratio);
  const double columns = points_along<T>(width, pooling.width, pooling.sampling_ratio);
  const double points = rows * columns * static_cast<double>(pooling.height) * static_cast<double>(pooling.width);
  if (points > kMaxPoints) {
    return {Fault::kPoints, points};
  }
  const double points_per_bin = rows * columns;
  placement.image = static_cast<int64_t>(image);
  placement.rows = points > 0 ? static_cast<int32_t>(rows) : 0;
  placement.columns = points > 0 ? static_cast<int32_t>(columns) : 0;
  placement.top = top;
  placement.left = left;
  placement.bin_height = height / static_cast<T>(static_cast<int>(pooling.height));
  placement.bin_width = width / static_cast<T>(static_cast<int>(pooling.width));
  placement.points_per_bin = static_cast<T>(static_cast<int>(points_per_bin < 1.0 ? 1.0 : points_per_bin));
  return {Fault::kNone, 0.0};
}

/// Returns position <= extent. Floats represent all realistic extents exactly.
template <typename T>
HYBRID_RT_HOST_DEVICE inline bool is_up_to(T position, int64_t extent) {
  constexpr int64_t kExactInFloat = int64_t{1} << 24;
  return extent <= kExactInFloat ? position <= static_cast<float>(extent)
                                 : static_cast<double>(position) <= static_cast<double>(extent);
}

/// Computes the tap of point `point` of `points` in bin `bin`, along an axis of `extent` pixels. Returns false if it
/// lies outside.
template <typename T>
HYBRID_RT_HOST_DEVICE inline bool place_point(T start, T bin_size, int32_t bin, int32_t point, int32_t points,
                                              int64_t extent, Tap<T>& tap) {
  T position = start + static_cast<T>(bin) * bin_size +
               static_cast<T>(static_cast<float>(point) + .5f) * bin_size / static_cast<T>(points);
  if (!(position >= -1.0f && is_up_to(position, extent))) {
    return false;
  }
  if (position <= 0.0f) {
    position = T(0);
  }
  tap.low = static_cast<int32_t>(position);
  tap.high = tap.low + 1;
  if (tap.low >= extent - 1) {
    tap.low = tap.high = static_cast<int32_t>(extent - 1);
    position = static_cast<T>(tap.low);
  }
  tap.high_weight = position - static_cast<T>(tap.low);
  tap.low_weight = T(1) - tap.high_weight;  // torchvision uses double, which rounds to the same T in [0, 1)
  return true;
}

}  // namespace hybrid_rt::operators
