#pragma once

#include <ATen/core/Tensor.h>

#include <map>
#include <optional>
#include <string>
#include <vector>

#include "hybrid_rt/verify.h"

namespace hybrid_rt {

/// One picture's detections by field, on the CPU: "boxes" [n, 4], "labels" [n], "scores" [n], and others.
using DetectionFields = std::map<std::string, at::Tensor>;

/// Of a list or tuple.
std::vector<c10::IValue> elements_of(const c10::IValue& value);

/// The value if it is a list of detections, else nothing.
std::optional<std::vector<DetectionFields>> detections_of(const c10::IValue& value);

/// The rule of hybrid_rt/boxes.py, step by step.
BoxMatch match_boxes(const DetectionFields& expected, const DetectionFields& found, const Thresholds& thresholds);

/// What of a picture differs by more than the thresholds allow, in words; empty if it passes.
std::vector<std::string> differences(const BoxMatch& match, const Thresholds& thresholds);

}  // namespace hybrid_rt
