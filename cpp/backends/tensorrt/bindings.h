#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/ArrayRef.h>

#include <string>
#include <vector>

#include "hybrid_rt/specs.h"
#include "vendor_runtime.h"

namespace hybrid_rt::tensorrt {

/// Range (min, max) of each dimension of one input in one optimisation profile.
struct ProfileInput {
  Shape min;
  Shape max;
};

/// Facts about an engine that were recorded when it was built, because it can't be queried without a GPU: the names of
/// its tensors, in the order of the spec, and its optimisation profiles.
struct Bindings {
  std::vector<std::string> inputs;  ///< empty if the segment does not use this input; the engine then does not have it
  std::vector<std::string> outputs;
  std::vector<std::vector<ProfileInput>> profiles;  ///< by profile, then by input
  bool is_version_compatible = false;
  RtxSwitches switches;

  /// Reads the recorded facts. Throws Error(kBundle) that names the missing field.
  static Bindings from_json(const at::Tensor& bytes, const ArtifactSpec& spec);

  /// Returns the first profile that contains these shapes (one per input). Throws Error(kInput) that lists the
  /// profiles.
  size_t profile_for(const std::vector<Shape>& shapes) const;
};

std::vector<Shape> shapes_of(at::ArrayRef<at::Tensor> tensors);

}  // namespace hybrid_rt::tensorrt
