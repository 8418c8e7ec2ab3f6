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
  /// For finding the worst image or output: greater is worse. None where the results can't be compared at all.
  std::optional<double> severity;
};

/// What the comparison of two results found; `failures` is empty if they are equal within the thresholds.
struct Comparison {
  std::vector<BoxMatch> pictures;
  std::vector<OutputError> outputs;
  std::vector<Failure> failures;
};

/// Compares two results of a detector: boxes if both are detections, else tensor by tensor, by name. `where` begins
/// each text. Throws Error(kInput) for a result without detections that holds something else than tensors.
Comparison compare_results(const c10::IValue& expected, const c10::IValue& found, const Thresholds& thresholds,
                           const std::string& where);

/// Compares one tensor. Another shape or dtype is infinitely wrong, and so is an infinity or NaN of one side alone.
/// Where both sides have the same infinity, or NaN, they are equal.
OutputError output_error(const std::string& name, const at::Tensor& expected, const at::Tensor& found);

/// Says how large an error is and what is allowed.
std::string error_text(const OutputError& error, const Thresholds& thresholds);

}  // namespace hybrid_rt
