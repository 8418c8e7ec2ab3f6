#pragma once

#include <ATen/core/ivalue.h>

#include <string>
#include <utility>
#include <vector>

#include "hybrid_rt/thresholds.h"
#include "hybrid_rt/verify.h"
#include "verify/boxes.h"

// Detections in results of any structure: a dict, dataclass or tuple of boxes, scores and labels, or lists of each with
// one entry per image. Rounding may change the order of their rows and remove a row, so rows are matched as those of a
// list of detections.

namespace hybrid_rt {

/// Leaves of a result, each named by the keys and indices that lead to it, joined by dots.
using Leaves = std::vector<std::pair<std::string, c10::IValue>>;

/// Detections of one image: names of the leaves that hold them.
struct DetectionGroup {
  /// The container, e.g. "output.detections"; for lists with one entry per image, the image's index stands for all of
  /// them: "output.*.0".
  std::string name;
  /// Names of leaves and fields. The fields "boxes", "scores" and "labels" are found by shape and dtype, others have
  /// their own name in the result. "labels" may be missing.
  std::vector<std::pair<std::string, std::string>> fields;
};

/// Returns the groups of leaves that are detections in at least one of two results, and have the shapes of detections
/// in both: boxes [n, 4], scores [n], labels [n] (integers), other tensors [n, ...]; n may differ between the results.
std::vector<DetectionGroup> detection_groups(const Leaves& expected, const Leaves& found);

/// Returns a group's fields in one of the results, on the CPU, with labels of zero if it has none.
DetectionFields fields_in(const Leaves& leaves, const DetectionGroup& group);

}  // namespace hybrid_rt
