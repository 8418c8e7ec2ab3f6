#pragma once

#include <torch/script.h>

#include <string>
#include <vector>

#include "bundle/archive.h"
#include "hybrid_rt/thresholds.h"

namespace hybrid_rt {

/// The golden sample of a bundle, see docs/format.md.
struct GoldenSample {
  std::vector<c10::IValue> inputs;
  c10::IValue expected;
  std::string precision;
  Thresholds thresholds;
  bool compared = false;
};

/// Reads the golden sample onto `device`, with inputs of the types of forward's `arguments`. Throws Error(kBundle) if
/// the bundle has none, or if it was altered.
GoldenSample read_golden(const Archive& archive, const std::vector<c10::Argument>& arguments, c10::Device device);

}  // namespace hybrid_rt
