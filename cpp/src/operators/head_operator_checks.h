#pragma once

#include <ATen/core/Tensor.h>

#include <cmath>
#include <cstdint>
#include <limits>

#include "operators/roi_geometry.h"

// The operators' checks of their inputs, the same on every device. All throw Error(ErrorKind::kInput).

namespace hybrid_rt::operators {

/// Checks the inputs of nms. `name` is the operator's name.
void check_nms(const at::Tensor& dets, const at::Tensor& scores, const char* name = "nms");

void check_roi_align(const at::Tensor& input, const at::Tensor& rois, int64_t pooled_height, int64_t pooled_width);

/// Checks the inputs of any pooling of boxes. `name` is the operator's name.
void check_pooling(const char* name, const at::Tensor& input, const at::Tensor& rois, int64_t pooled_height,
                   int64_t pooled_width);

/// Does the same for position-sensitive poolings, whose input has one channel per output channel and bin.
void check_position_sensitive_pooling(const char* name, const at::Tensor& input, const at::Tensor& rois,
                                      int64_t pooled_height, int64_t pooled_width);

/// Throws if a box was refused. `row` is the box's row in the rois, `images` the number of images in the batch.
void check_box(const BoxVerdict& verdict, int64_t images, int64_t row, const char* name = "roi_align");

struct DeformableConvolution;

void check_deform_conv2d(const at::Tensor& input, const at::Tensor& weight, const at::Tensor& offset,
                         const at::Tensor& mask, const at::Tensor& bias, const DeformableConvolution& options);

/// Returns the largest T that is not above `threshold`: `value > threshold` then has the same result for every value of
/// type T.
template <typename T>
T round_down(double threshold) {
  const T nearest = static_cast<T>(threshold);
  return static_cast<double>(nearest) > threshold ? std::nextafter(nearest, -std::numeric_limits<T>::infinity())
                                                  : nearest;
}

}  // namespace hybrid_rt::operators
