#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/ArrayRef.h>

#include <cstdint>
#include <tuple>

// Parts of torchvision's detection heads, each in one operator (torchscript/known_heads.py inserts them). The results
// equal those of the code that they replace, in the same order, including ties; scores may differ in the last bit,
// because torch's vectorised loops round differently at their ends. CPU kernels for float32; other dtypes and devices
// use torch's operators. Thread-safe and stateless. They throw Error (ErrorKind::kInput) for inputs that they refuse.

namespace hybrid_rt::operators {

/// Non-maximum suppression within each class, like torchvision.ops.batched_nms: returns indices (int64, [K]), best
/// score first. boxes: float32 or float64 [N, 4], (x1, y1, x2, y2); scores: [N], of the same dtype; idxs: int64 [N],
/// the classes.
at::Tensor batched_nms(const at::Tensor& boxes, const at::Tensor& scores, const at::Tensor& idxs, double iou_threshold);

/// Returns an SSD's detections in one image: boxes [K, 4], scores [K] and labels (int64, [K]), best score first. boxes:
/// floats [A, 4], one per anchor; scores: [A, C], of the same dtype; class 0 is the background. Per class, the
/// `topk_candidates` best scores above `score_thresh` go through non-maximum suppression. The `detections_per_img`
/// best of the remaining boxes of all classes are returned.
std::tuple<at::Tensor, at::Tensor, at::Tensor> ssd_detections(const at::Tensor& boxes, const at::Tensor& scores,
                                                              double score_thresh, int64_t topk_candidates,
                                                              double nms_thresh, int64_t detections_per_img);

/// Returns the `topk_candidates` best values sigmoid(logits) above `score_thresh`, best first, and their indices
/// (int64) in the flattened logits. The sigmoid is not computed for logits that are far too low. logits: floats of any
/// shape.
std::tuple<at::Tensor, at::Tensor> sigmoid_topk(const at::Tensor& logits, double score_thresh, int64_t topk_candidates);

/// Like sigmoid_topk, for the values sqrt(sigmoid(logits) * sigmoid(centerness)). logits: floats [A, C]; centerness:
/// [A, 1], of the same dtype.
std::tuple<at::Tensor, at::Tensor> centered_sigmoid_topk(const at::Tensor& logits, const at::Tensor& centerness,
                                                         double score_thresh, int64_t topk_candidates);

/// Returns the softmax of logits over their last dimension. logits: floats [..., C].
at::Tensor class_probabilities(const at::Tensor& logits);

/// Returns the level of each box in a feature pyramid, like torchvision's LevelMapper: int64 [K], from 0 to k_max -
/// k_min. boxes: floats [K, 4]; the level is floor(canonical_level + log2(sqrt(area) / canonical_scale) + eps), limited
/// to k_min and k_max, less k_min. If the area is NaN or negative, the result is torch's conversion of NaN, less k_min.
at::Tensor box_levels(const at::Tensor& boxes, int64_t k_min, int64_t k_max, int64_t canonical_scale,
                      int64_t canonical_level, double eps);

/// Applies roi_align to each box on its level of a feature pyramid: returns [K, C, pooled_height, pooled_width],
/// contiguous. features: [N, C, H, W] of one dtype that roi_align supports, one per level; rois: [K, 5], as for
/// roi_align; levels: int64 [K], the level of each box, whose result is 0 if there is no such level; scales: one per
/// level. Not aligned, like torchvision's MultiScaleRoIAlign.
at::Tensor multiscale_roi_align(at::TensorList features, const at::Tensor& rois, const at::Tensor& levels,
                                at::ArrayRef<double> scales, int64_t pooled_height, int64_t pooled_width,
                                int64_t sampling_ratio);

}  // namespace hybrid_rt::operators
