#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <tuple>
#include <utility>

// The operators of detection heads that TorchScript graphs call instead of torchvision's, so that a C++ program needs
// no torchvision. CPU kernels, thread-safe and stateless. They throw Error (ErrorKind::kInput) for inputs that they
// refuse. The operators for CUDA tensors (cuda_operators.h) have the same contract. register.cpp registers them.
// Statements about torchvision refer to the CPU kernels of version 0.29.2, for the dtypes that these operators support.

namespace hybrid_rt::operators {

/// Non-maximum suppression: returns the indices (int64, [K]) of the kept boxes, best score first. dets: float32 or
/// float64 [N, 4], (x1, y1, x2, y2); scores: [N], of the same dtype. A box is dropped if its intersection over union
/// with a better kept box is above `iou_threshold`, any double. Equal scores keep the order of the boxes, NaN counts as
/// the best score, and a box with a NaN coordinate neither drops others nor is dropped. The indices always equal those
/// of torchvision::nms.
at::Tensor nms(const at::Tensor& dets, const at::Tensor& scores, double iou_threshold);

/// ROI Align (Mask R-CNN, https://arxiv.org/abs/1703.06870): returns [K, C, pooled_height, pooled_width], contiguous.
/// input: float32, float64 or float16 [N, C, H, W] with any strides, fastest in channels_last; rois: [K, 5], of the
/// same dtype, (index of the image, x1, y1, x2, y2) in units of 1 / spatial_scale pixels. sampling_ratio: points per
/// bin and axis; 0 or less selects ceil(size of the bin in pixels). aligned: shifts by half a pixel. The values equal
/// those of torchvision::roi_align bit for bit (same arithmetic in the same order, no fused multiply-add), except where
/// torchvision's are undefined:
/// - a point outside the image, or with a NaN or infinite coordinate, adds 0 (torchvision adds 0 times pixel (0, 0),
///   which is NaN if this pixel is not finite, and reads foreign memory for NaN);
/// - a box without points (aligned, adaptive, x2 <= x1 or y2 <= y1) gives 0 (torchvision: 0 or a failed allocation);
/// - inputs without pixels (H or W is 0) are refused, and so are another dtype or rank even without boxes, although
///   torchvision accepts them, crashes or wraps around.
at::Tensor roi_align(const at::Tensor& input, const at::Tensor& rois, double spatial_scale, int64_t pooled_height,
                     int64_t pooled_width, int64_t sampling_ratio, bool aligned);

/// RoI pooling (Fast R-CNN, https://arxiv.org/abs/1504.08083): returns the largest value of each bin, and the index of
/// its pixel (int32, -1 for a bin without pixels), both [K, C, pooled_height, pooled_width]. Inputs as for roi_align.
/// Values and indices equal those of torchvision::roi_pool bit for bit. A box with a corner that is not finite, or that
/// exceeds 32 bits, has no pixels: its values are 0 (torchvision: undefined).
std::tuple<at::Tensor, at::Tensor> roi_pool(const at::Tensor& input, const at::Tensor& rois, double spatial_scale,
                                            int64_t pooled_height, int64_t pooled_width);

/// Position-sensitive RoI pooling (R-FCN, https://arxiv.org/abs/1605.06409): returns the mean of each bin in a channel
/// of its own, and that channel (int32), both [K, C / (pooled_height * pooled_width), pooled_height, pooled_width].
/// Equals torchvision::ps_roi_pool bit for bit; boxes that are not finite are handled as in roi_pool.
std::tuple<at::Tensor, at::Tensor> ps_roi_pool(const at::Tensor& input, const at::Tensor& rois, double spatial_scale,
                                               int64_t pooled_height, int64_t pooled_width);

/// Position-sensitive RoI Align (Light-Head R-CNN, https://arxiv.org/abs/1711.07264), otherwise like ps_roi_pool. The
/// sampling points are those of roi_align with aligned=true. A box without area gives NaN where torchvision's does, and
/// 0 if its corners are swapped.
std::tuple<at::Tensor, at::Tensor> ps_roi_align(const at::Tensor& input, const at::Tensor& rois, double spatial_scale,
                                                int64_t pooled_height, int64_t pooled_width, int64_t sampling_ratio);

/// The parameters of a deformable convolution, in the order of torchvision's schema.
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

  /// Returns height and width of the output.
  std::pair<int64_t, int64_t> output_size(const at::Tensor& input, const at::Tensor& weight) const {
    const auto along = [](int64_t extent, int64_t kernel, int64_t padding, int64_t dilation, int64_t stride) {
      return (extent + 2 * padding - dilation * (kernel - 1) - 1) / stride + 1;
    };
    return {along(input.size(2), weight.size(2), pad_h, dilation_h, stride_h),
            along(input.size(3), weight.size(3), pad_w, dilation_w, stride_w)};
  }
};

/// Deformable convolution, version 2 if `use_mask` (https://arxiv.org/abs/1811.11168): returns [N, O, height, width].
/// input: float32, float64 or float16 [N, C, H, W]; weight: [O, C / groups, kernel height, kernel width]; offset: [N, 2
/// * offset_groups * kernel height * kernel width, height, width], (y, x) of each tap in pixels; mask: half as many
/// channels, ignored without `use_mask`; bias: [O]. Equals torchvision::deform_conv2d except for the rounding of the
/// matrix product; a tap with an offset that is not finite adds 0 (torchvision: undefined).
at::Tensor deform_conv2d(const at::Tensor& input, const at::Tensor& weight, const at::Tensor& offset,
                         const at::Tensor& mask, const at::Tensor& bias, int64_t stride_h, int64_t stride_w,
                         int64_t pad_h, int64_t pad_w, int64_t dilation_h, int64_t dilation_w, int64_t groups,
                         int64_t offset_groups, bool use_mask);

/// Does the same with torch's operators, for devices that have no kernel of ours. It holds four values per tap in
/// memory.
at::Tensor composed_deform_conv2d(const at::Tensor& input, const at::Tensor& weight, const at::Tensor& offset,
                                  const at::Tensor& mask, const at::Tensor& bias, int64_t stride_h, int64_t stride_w,
                                  int64_t pad_h, int64_t pad_w, int64_t dilation_h, int64_t dilation_w, int64_t groups,
                                  int64_t offset_groups, bool use_mask);

}  // namespace hybrid_rt::operators
