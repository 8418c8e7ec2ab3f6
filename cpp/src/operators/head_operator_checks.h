#pragma once

#include <ATen/core/Tensor.h>

#include <cmath>
#include <cstdint>
#include <limits>

#include "operators/roi_geometry.h"

// What the operators refuse, the same on every device. All throw Error(ErrorKind::kInput).

namespace hybrid_rt::operators {

/// `name`: of the operator.
void check_nms(const at::Tensor& dets, const at::Tensor& scores, const char* name = "nms");

void check_roi_align(const at::Tensor& input, const at::Tensor& rois, int64_t pooled_height, int64_t pooled_width);

/// What every pooling of boxes refuses. `name`: of the operator.
void check_pooling(const char* name, const at::Tensor& input, const at::Tensor& rois, int64_t pooled_height,
                   int64_t pooled_width);

/// The same for the position-sensitive ones, whose channels are those of the output times the bins.
void check_position_sensitive_pooling(const char* name, const at::Tensor& input, const at::Tensor& rois,
                                      int64_t pooled_height, int64_t pooled_width);

/// `row`: of the box among the rois; `pictures`: in the batch.
void check_box(const BoxVerdict& verdict, int64_t pictures, int64_t row, const char* name = "roi_align");

struct DeformableConvolution;

void check_deform_conv2d(const at::Tensor& input, const at::Tensor& weight, const at::Tensor& offset,
                         const at::Tensor& mask, const at::Tensor& bias, const DeformableConvolution& options);

/// The largest T that is not above `threshold`: for every value of T, `value > threshold` has the same answer.
template <typename T>
T round_down(double threshold) {
  const T nearest = static_cast<T>(threshold);
  return static_cast<double>(nearest) > threshold ? std::nextafter(nearest, -std::numeric_limits<T>::infinity())
                                                  : nearest;
}

}  // namespace hybrid_rt::operators
