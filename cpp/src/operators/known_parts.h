#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/ArrayRef.h>

#include <cstdint>
#include <tuple>

// Whole steps of torchvision's detectors in one operator each, for float32 on the CPU: they refuse other dtypes and
// devices, for which torchscript/known_methods.py keeps the code in torch's operators. Results as detection_operators.h
// says. Thread-safe, no state; they throw Error (ErrorKind::kInput) for what they refuse.

namespace hybrid_rt::operators {

/// The proposals of a region proposal network for one image of a batch, best first: [K, 4].
///
/// objectness: logits [N, A, H, W], one per level; deltas: codes [N, 4 * A, H, W]; cell_anchors: [A, 4], around 0;
/// image: index in the batch; padded_size: (height, width) of the batch; image_size: of this image, to which boxes are
/// clipped. The `pre_nms_top_n` best of each level are decoded; those that have a side below `min_size` or a score
/// below `score_thresh` go; `post_nms_top_n` of what non-maximum suppression within the levels leaves are returned.
/// weights and bbox_xform_clip: the box coder's.
at::Tensor region_proposals(at::TensorList objectness, at::TensorList deltas, at::TensorList cell_anchors,
                            int64_t image, at::IntArrayRef padded_size, at::IntArrayRef image_size,
                            int64_t pre_nms_top_n, int64_t post_nms_top_n, double min_size, double score_thresh,
                            double nms_thresh, at::ArrayRef<double> weights, double bbox_xform_clip);

/// The detections of an R-CNN's box head in one image: boxes [K, 4], scores [K] and labels (int64, [K]), best first.
///
/// scores: [R, C], class 0 is the background; codes: [R, 4 * C]; proposals: [R, 4]; image_size: (height, width), to
/// which boxes are clipped. Of the scores above `score_thresh` those whose box has no side below 0.01 go through
/// non-maximum suppression within the classes, and `detections_per_img` of what stays are returned.
std::tuple<at::Tensor, at::Tensor, at::Tensor> box_detections(const at::Tensor& scores, const at::Tensor& codes,
                                                              const at::Tensor& proposals, at::IntArrayRef image_size,
                                                              double score_thresh, double nms_thresh,
                                                              int64_t detections_per_img, at::ArrayRef<double> weights,
                                                              double bbox_xform_clip);

/// Images as a network takes them: [N, C, H, W], contiguous; each normalised, (x - mean) / std, resized bilinearly to
/// its size among `heights` and `widths`, and padded with zeros to the largest, rounded up to `size_divisible`.
///
/// images: [C, H, W] of any strides; mean, std: one per channel.
at::Tensor normalized_batch(at::TensorList images, at::ArrayRef<double> mean, at::ArrayRef<double> std,
                            at::IntArrayRef heights, at::IntArrayRef widths, int64_t size_divisible);

}  // namespace hybrid_rt::operators
