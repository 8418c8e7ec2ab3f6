#pragma once

#include "operators/host_device.h"

// The criterion of nms, in one source for CPUs and GPUs, so that both round in the same way.

namespace hybrid_rt::operators {

template <typename T>
struct Corners {
  T x1;
  T y1;
  T x2;
  T y2;
};

template <typename T>
[[gnu::always_inline]] HYBRID_RT_HOST_DEVICE inline T area_of(Corners<T> box) {
  return (box.x2 - box.x1) * (box.y2 - box.y1);
}

/// Returns the intersection over union of a kept box and one with a lower score. The comparisons are written out
/// instead of using fmin and fmax, because their results for NaN are part of the contract.
template <typename T>
[[gnu::always_inline]] HYBRID_RT_HOST_DEVICE inline T overlap_of(Corners<T> kept, T kept_area, Corners<T> box, T area) {
  const T left = kept.x1 < box.x1 ? box.x1 : kept.x1;
  const T top = kept.y1 < box.y1 ? box.y1 : kept.y1;
  const T right = box.x2 < kept.x2 ? box.x2 : kept.x2;
  const T bottom = box.y2 < kept.y2 ? box.y2 : kept.y2;
  const T width = T(0) < right - left ? right - left : T(0);
  const T height = T(0) < bottom - top ? bottom - top : T(0);
  const T intersection = width * height;
  return intersection / (kept_area + area - intersection);
}

}  // namespace hybrid_rt::operators
