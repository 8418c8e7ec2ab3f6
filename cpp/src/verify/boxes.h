#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/core/ivalue.h>

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "hybrid_rt/verify.h"

// The rule that decides which boxes of a detector and of its hybrid are the same. There is no other copy: Python binds
// this one.

namespace hybrid_rt {

/// Detections of one image by field, on the CPU: "boxes" [n, 4], "labels" [n], "scores" [n], and others. A field that
/// is not a tensor is undefined.
using DetectionFields = std::map<std::string, at::Tensor>;

/// Indices (expected, found) of boxes that are the same.
using BoxPairs = std::vector<std::pair<int64_t, int64_t>>;

/// Returns the value if it is a list of detections, else nothing.
std::optional<std::vector<DetectionFields>> detections_of(const c10::IValue& value);

/// Returns the intersection over union [n, m] of boxes [n, 4] and [m, 4], each (x1, y1, x2, y2). It is 1 for equal
/// boxes, also for empty ones.
at::Tensor box_iou(const at::Tensor& first, const at::Tensor& second);

/// Returns the overlap [n] of each box with the one in the same row, boxes [n, 4] of double on both sides: the IoU, or
/// for boxes thinner than a pixel the closeness of their edges. Boxes are (x1, y1, x2, y2), or (x, y, width, height)
/// around a center if those of `expected` can't be corners. Returns nothing if they are neither.
std::optional<at::Tensor> overlap_by_row(const at::Tensor& expected, const at::Tensor& found);

/// Returns the pairs of boxes with equal labels, and IoU and scores within the thresholds. Pairs are one to one: each
/// expected box, in order, gets the free box that it overlaps most.
BoxPairs matching_boxes(const DetectionFields& expected, const DetectionFields& found, const Thresholds& thresholds);

/// Compares the detections of one image. Masks and keypoints of the pairs are compared if both sides have them.
BoxMatch match_boxes(const DetectionFields& expected, const DetectionFields& found, const Thresholds& thresholds);

/// Describes the differences beyond the thresholds; empty if the image passes.
std::vector<std::string> differences(const BoxMatch& match, const Thresholds& thresholds);

}  // namespace hybrid_rt
