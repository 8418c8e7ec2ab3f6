#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/ArrayRef.h>

#include <cstdint>
#include <tuple>

// Whole steps of torchvision's detectors, each in one operator, for float32 on the CPU. They refuse other dtypes and
// devices, for which torchscript/known_methods.py calls torch's operators. The results are as described in
// detection_operators.h. Thread-safe and stateless. They throw Error (ErrorKind::kInput) for inputs that they refuse.

namespace hybrid_rt::operators {

/// Returns the proposals of a region proposal network for one image of a batch, best first: [K, 4]. objectness: logits
/// [N, A, H, W], one per level; deltas: codes [N, 4 * A, H, W]; cell_anchors: [A, 4], centred at 0; image: index in the
/// batch; padded_size: (height, width) of the batch; image_size: (height, width) of this image, to which boxes are
/// clipped. The `pre_nms_top_n` best of each level are decoded; boxes with a side below `min_size` or a score below
/// `score_thresh` are dropped; the `post_nms_top_n` best are returned after non-maximum suppression within each level.
/// weights and bbox_xform_clip are the box coder's.
at::Tensor region_proposals(at::TensorList objectness, at::TensorList deltas, at::TensorList cell_anchors,
                            int64_t image, at::IntArrayRef padded_size, at::IntArrayRef image_size,
                            int64_t pre_nms_top_n, int64_t post_nms_top_n, double min_size, double score_thresh,
                            double nms_thresh, at::ArrayRef<double> weights, double bbox_xform_clip);

/// Returns the detections of an R-CNN's box head in one image: boxes [K, 4], scores [K] and labels (int64, [K]), best
/// first. scores: [R, C], class 0 is the background; codes: [R, 4 * C]; proposals: [R, 4]; image_size: (height, width),
/// to which boxes are clipped. Boxes with a score above `score_thresh` and no side below 0.01 go through non-maximum
/// suppression within each class, and the `detections_per_img` best are returned.
std::tuple<at::Tensor, at::Tensor, at::Tensor> box_detections(const at::Tensor& scores, const at::Tensor& codes,
                                                              const at::Tensor& proposals, at::IntArrayRef image_size,
                                                              double score_thresh, double nms_thresh,
                                                              int64_t detections_per_img, at::ArrayRef<double> weights,
                                                              double bbox_xform_clip);

/// Returns decoded boxes, [K, 4]: boxes moved and scaled by codes and clipped to an image. codes: [K, 4], (dx, dy, dw,
/// dh); boxes: [K, 4]; image_size: (height, width). weights and bbox_xform_clip are the box coder's.
at::Tensor decoded_boxes(const at::Tensor& codes, const at::Tensor& boxes, at::IntArrayRef image_size,
                         at::ArrayRef<double> weights, double bbox_xform_clip);

/// Returns the anchors of an SSD for one image, like torchvision's DefaultBoxGenerator: [K, 4], in pixels, level by
/// level, row by row. heights, widths: cells per level; pairs: [A, 2], (width, height) of a cell's anchors as fractions
/// of the image, which `clip` limits to 0 and 1; image_size: (height, width) of the batch; steps: pixels per cell and
/// level, or none, if the cells of a level fill the image.
at::Tensor default_boxes(at::IntArrayRef heights, at::IntArrayRef widths, at::TensorList pairs,
                         at::IntArrayRef image_size, at::IntArrayRef steps, bool clip);

/// Returns images as a network takes them: [N, C, H, W], contiguous. Each image is normalised, (x - mean) / std,
/// resized bilinearly to its size in `heights` and `widths`, and padded with zeros to the largest size, rounded up to a
/// multiple of `size_divisible`. images: [C, H, W] with any strides; mean, std: one value per channel.
at::Tensor normalized_batch(at::TensorList images, at::ArrayRef<double> mean, at::ArrayRef<double> std,
                            at::IntArrayRef heights, at::IntArrayRef widths, int64_t size_divisible);

}  // namespace hybrid_rt::operators
