#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/ArrayRef.h>

#include <cstdint>
#include <tuple>

// Parts of torchvision's detection heads in one operator each (torchscript/known_heads.py puts them in). The results
// are those of the code that they stand for, in the order of its results, ties included; scores may differ by the last
// bit, since torch's loops round otherwise at their ends. CPU kernels for float32; other dtypes and devices take the
// same way through torch's operators. Thread-safe, no state; they throw Error (ErrorKind::kInput) for what they refuse.

namespace hybrid_rt::operators {

/// Non-maximum suppression within each class, as torchvision.ops.batched_nms: indices (int64, [K]), best score first.
///
/// boxes: float32 or float64 [N, 4], (x1, y1, x2, y2); scores: [N], of the same dtype; idxs: int64 [N], the classes.
at::Tensor batched_nms(const at::Tensor& boxes, const at::Tensor& scores, const at::Tensor& idxs, double iou_threshold);

/// What an SSD finds in one image: boxes [K, 4], scores [K] and labels (int64, [K]), best score first.
///
/// boxes: floats [A, 4], one per anchor; scores: [A, C], of the same dtype; class 0 is the background. Per class the
/// `topk_candidates` best of the scores above `score_thresh` go through non-maximum suppression, and of what stays in
/// all classes the `detections_per_img` best are returned.
std::tuple<at::Tensor, at::Tensor, at::Tensor> ssd_detections(const at::Tensor& boxes, const at::Tensor& scores,
                                                              double score_thresh, int64_t topk_candidates,
                                                              double nms_thresh, int64_t detections_per_img);

/// The `topk_candidates` best of the values sigmoid(logits) above `score_thresh`, best first, and their indices (int64)
/// in the flattened logits. No sigmoid is computed of what is too low by far.
///
/// logits: floats of any shape.
std::tuple<at::Tensor, at::Tensor> sigmoid_topk(const at::Tensor& logits, double score_thresh, int64_t topk_candidates);

/// As sigmoid_topk, of the values sqrt(sigmoid(logits) * sigmoid(centerness)).
///
/// logits: floats [A, C]; centerness: [A, 1], of the same dtype.
std::tuple<at::Tensor, at::Tensor> centered_sigmoid_topk(const at::Tensor& logits, const at::Tensor& centerness,
                                                         double score_thresh, int64_t topk_candidates);

/// roi_align of each box on its level of a feature pyramid: [K, C, pooled_height, pooled_width], contiguous.
///
/// features: [N, C, H, W] of one dtype, as of roi_align, one per level; rois: [K, 5], as of roi_align; levels: int64
/// [K], the level of each box, whose result is 0 if there is no such level; scales: one per level. Not aligned, as
/// torchvision's MultiScaleRoIAlign.
at::Tensor multiscale_roi_align(at::TensorList features, const at::Tensor& rois, const at::Tensor& levels,
                                at::ArrayRef<double> scales, int64_t pooled_height, int64_t pooled_width,
                                int64_t sampling_ratio);

}  // namespace hybrid_rt::operators
