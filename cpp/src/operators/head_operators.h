#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <tuple>
#include <utility>

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

/// RoI pooling (Fast R-CNN, https://arxiv.org/abs/1504.08083): the greatest value of each bin, and the index of its
/// pixel (int32, -1 for a bin without pixels), both [K, C, pooled_height, pooled_width].
///
/// Inputs as of roi_align, and the values and indices are torchvision::roi_pool's bit for bit. A box whose corners are
/// not finite or beyond 32 bits has no pixels: its values are 0 (torchvision: undefined).
std::tuple<at::Tensor, at::Tensor> roi_pool(const at::Tensor& input, const at::Tensor& rois, double spatial_scale,
                                            int64_t pooled_height, int64_t pooled_width);

/// Position-sensitive RoI pooling (R-FCN, https://arxiv.org/abs/1605.06409): the mean of each bin in a channel of its
/// own, and that channel (int32), both [K, C / (pooled_height * pooled_width), pooled_height, pooled_width]. As
/// torchvision::ps_roi_pool, bit for bit; boxes that are not finite as in roi_pool.
std::tuple<at::Tensor, at::Tensor> ps_roi_pool(const at::Tensor& input, const at::Tensor& rois, double spatial_scale,
                                               int64_t pooled_height, int64_t pooled_width);

/// Position-sensitive RoI Align (Light-Head R-CNN, https://arxiv.org/abs/1711.07264), otherwise as ps_roi_pool. The
/// sampling points are those of roi_align with aligned=true. A box without area is NaN where torchvision's is, 0 where
/// it is turned inside out.
std::tuple<at::Tensor, at::Tensor> ps_roi_align(const at::Tensor& input, const at::Tensor& rois, double spatial_scale,
                                                int64_t pooled_height, int64_t pooled_width, int64_t sampling_ratio);

/// The numbers of a deformable convolution, in the order of torchvision's schema.
struct DeformableConvolution {
  int64_t stride_h;
  int64_t stride_w;
  int64_t pad_h;
  int64_t pad_w;
  int64_t dilation_h;
  int64_t dilation_w;
  int64_t groups;
  int64_t offset_groups;
  bool use_mask;

  /// Height and width of the output.
  std::pair<int64_t, int64_t> output_size(const at::Tensor& input, const at::Tensor& weight) const {
    const auto along = [](int64_t extent, int64_t kernel, int64_t padding, int64_t dilation, int64_t stride) {
      return (extent + 2 * padding - dilation * (kernel - 1) - 1) / stride + 1;
    };
    return {along(input.size(2), weight.size(2), pad_h, dilation_h, stride_h),
            along(input.size(3), weight.size(3), pad_w, dilation_w, stride_w)};
  }
};

/// Deformable convolution, version 2 if `use_mask` (https://arxiv.org/abs/1811.11168): [N, O, height, width].
///
/// input: float32, float64 or float16 [N, C, H, W]; weight: [O, C / groups, kernel height, kernel width]; offset:
/// [N, 2 * offset_groups * kernel height * kernel width, height, width], (y, x) of each tap in pixels; mask: half as
/// many channels, ignored without `use_mask`; bias: [O]. As torchvision::deform_conv2d but for the rounding of the
/// matrix product; a tap whose offset is not finite adds 0 (torchvision: undefined).
at::Tensor deform_conv2d(const at::Tensor& input, const at::Tensor& weight, const at::Tensor& offset,
                         const at::Tensor& mask, const at::Tensor& bias, int64_t stride_h, int64_t stride_w,
                         int64_t pad_h, int64_t pad_w, int64_t dilation_h, int64_t dilation_w, int64_t groups,
                         int64_t offset_groups, bool use_mask);

/// The same put together from torch's operators, for devices that have no kernel of ours. It holds four values per tap.
at::Tensor composed_deform_conv2d(const at::Tensor& input, const at::Tensor& weight, const at::Tensor& offset,
                                  const at::Tensor& mask, const at::Tensor& bias, int64_t stride_h, int64_t stride_w,
                                  int64_t pad_h, int64_t pad_w, int64_t dilation_h, int64_t dilation_w, int64_t groups,
                                  int64_t offset_groups, bool use_mask);

}  // namespace hybrid_rt::operators
