#pragma once

#include <ATen/core/Tensor.h>

#include <cmath>
#include <cstdint>
#include <limits>

#include "operators/roi_geometry.h"

// What nms and roi_align refuse, the same on every device. All throw Error(ErrorKind::kInput).

namespace hybrid_rt::operators {

void check_nms(const at::Tensor& dets, const at::Tensor& scores);

void check_roi_align(const at::Tensor& input, const at::Tensor& rois, int64_t pooled_height, int64_t pooled_width);

/// `row`: of the box among the rois; `pictures`: in the batch.
void check_box(const BoxVerdict& verdict, int64_t pictures, int64_t row);

/// The largest T that is not above `threshold`: for every value of T, `value > threshold` has the same answer.
template <typename T>
T round_down(double threshold) {
  const T nearest = static_cast<T>(threshold);
  return static_cast<double>(nearest) > threshold ? std::nextafter(nearest, -std::numeric_limits<T>::infinity())
                                                  : nearest;
}

}  // namespace hybrid_rt::operators
