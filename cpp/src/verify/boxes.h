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

// The rule of which boxes of a detector and of its hybrid are the same. It stands here alone: Python binds it.

namespace hybrid_rt {

/// One image's detections by field, on the CPU: "boxes" [n, 4], "labels" [n], "scores" [n], and others. A field that is
/// not a tensor is undefined.
using DetectionFields = std::map<std::string, at::Tensor>;

/// Indices of (expected, found) boxes that are the same.
using BoxPairs = std::vector<std::pair<int64_t, int64_t>>;

/// Returns the value if it is a list of detections, else nothing.
std::optional<std::vector<DetectionFields>> detections_of(const c10::IValue& value);

/// Returns the intersection over union of boxes [n, 4] and [m, 4], (x1, y1, x2, y2): [n, m]. Equal boxes have 1, empty
/// or not.
at::Tensor box_iou(const at::Tensor& first, const at::Tensor& second);

/// Returns the pairs of equal labels, IoU and scores within the thresholds: one to one, the expected boxes in order,
/// each with the free box that it overlaps most.
BoxPairs matching_boxes(const DetectionFields& expected, const DetectionFields& found, const Thresholds& thresholds);

/// Compares the detections of one image. Masks and keypoints are compared for the pairs, where both sides have them.
BoxMatch match_boxes(const DetectionFields& expected, const DetectionFields& found, const Thresholds& thresholds);

/// Says what differs by more than the thresholds allow; empty if the image passes.
std::vector<std::string> differences(const BoxMatch& match, const Thresholds& thresholds);

}  // namespace hybrid_rt
