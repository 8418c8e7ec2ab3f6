#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

// The operators of detection heads that TorchScript graphs call in place of torchvision's, so that a C++ program needs
// no torchvision. CPU kernels, thread-safe, no state; they throw Error (ErrorKind::kInput) for what they refuse. Those
// of CUDA tensors (cuda_operators.h) keep the same contract. The registration is in register.cpp. Compared with
// torchvision 0.29.2's CPU kernels, on the dtypes that these take.

namespace hybrid_rt::operators {

/// Non-maximum suppression: the indices (int64, [K]) of the boxes that stay, best score first.
///
/// dets: float32 or float64 [N, 4], (x1, y1, x2, y2); scores: [N], of the same dtype. A box goes when its intersection
/// over union with a better box that stays is above `iou_threshold`, any double. Equal scores keep the order of the
/// boxes, NaN counts as the best score, a box with a NaN never suppresses or goes.
///
/// The indices are those of torchvision::nms, all of them.
at::Tensor nms(const at::Tensor& dets, const at::Tensor& scores, double iou_threshold);

/// ROI Align (Mask R-CNN, https://arxiv.org/abs/1703.06870): [K, C, pooled_height, pooled_width], contiguous.
///
/// input: float32, float64 or float16 [N, C, H, W] of any strides, fastest as channels_last; rois: [K, 5], of the same
/// dtype, (index of the picture, x1, y1, x2, y2) in units of 1 / spatial_scale pixels. sampling_ratio: points per bin
/// and axis, 0 or less for ceil(size of the bin in pixels). aligned: shift by half a pixel.
///
/// The values are those of torchvision::roi_align bit for bit (same arithmetic in the same order, no fused
/// multiply-add), except where torchvision has undefined results:
/// - a point outside the picture, or with a NaN or infinite coordinate, adds 0 (torchvision adds 0 times pixel (0, 0),
///   which is NaN if this pixel is not finite, and reads foreign memory for NaN);
/// - a box of no points (aligned, adaptive, x2 <= x1 or y2 <= y1) gives 0 (torchvision: 0 or a failed allocation);
/// - refused though torchvision accepts, crashes or wraps around: no pixels (H or W is 0), and also for no boxes at
///   all: another dtype, another rank.
at::Tensor roi_align(const at::Tensor& input, const at::Tensor& rois, double spatial_scale, int64_t pooled_height,
                     int64_t pooled_width, int64_t sampling_ratio, bool aligned);

}  // namespace hybrid_rt::operators
