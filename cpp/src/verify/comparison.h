#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/core/ivalue.h>

#include <optional>
#include <string>
#include <vector>

#include "hybrid_rt/thresholds.h"
#include "hybrid_rt/verify.h"

namespace hybrid_rt {

struct Failure {
  std::string text;
  /// Used to find the worst image or output: greater is worse. Absent if the results can't be compared at all.
  std::optional<double> severity;
  /// True for the boxes, masks and keypoints of an image, which the detector may not repeat itself.
  bool is_of_boxes = false;
};

/// Result of comparing two results. `failures` is empty if they are equal within the thresholds.
struct Comparison {
  std::vector<BoxMatch> pictures;
  std::vector<OutputError> outputs;
  std::vector<Failure> failures;
};

/// Compares two results of a detector: boxes if both are detections, otherwise tensor by tensor, by name. There, rows
/// of detections may change places within near-ties, see near_ties.h. `where` begins each text. Throws Error(kInput)
/// for a result that is not a list of detections and contains anything but tensors and plain values.
Comparison compare_results(const c10::IValue& expected, const c10::IValue& found, const Thresholds& thresholds,
                           const std::string& where);

/// Compares one tensor. The error is infinite if the shape or dtype differs, or if only one side has an infinity or NaN
/// at a position. The same infinity, or NaN, on both sides counts as equal.
///
/// The error is relative to the largest value, with two exceptions, which have the difference itself as their error:
/// - whole numbers (integers, and columns of floats that are whole on both sides), unless `limit` allows for more than
///   rounding in float32,
/// - columns of scores, in 0..1, beside others that exceed 2. Columns are those of the last two axes of a tensor with
///   up to three.
/// \param limit largest error that counts as equal
OutputError output_error(const std::string& name, const at::Tensor& expected, const at::Tensor& found, double limit);

/// Describes an error and its limit.
std::string error_text(const OutputError& error, const Thresholds& thresholds);

}  // namespace hybrid_rt
