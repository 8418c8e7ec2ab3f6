#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/ArrayRef.h>

#include <string>
#include <vector>

#include "hybrid_rt/specs.h"
#include "vendor_runtime.h"

namespace hybrid_rt::tensorrt {

/// (min, max) of each dimension of one input in one optimisation profile.
struct ProfileInput {
  Shape min;
  Shape max;
};

/// What was recorded of an engine when it was built, since the engine can't be asked where there is no GPU: the names
/// of its tensors in the order of the spec, and its optimisation profiles.
struct Bindings {
  std::vector<std::string> inputs;  ///< empty: the segment does not look at this one, and the engine has none of it
  std::vector<std::string> outputs;
  std::vector<std::vector<ProfileInput>> profiles;  ///< by profile, then by input
  bool is_version_compatible = false;
  RtxSwitches switches;

  /// Throws Error(kBundle) that names what is missing.
  static Bindings from_json(const at::Tensor& bytes, const ArtifactSpec& spec);

  /// The first profile that holds these shapes, one an input. Throws Error(kInput) that lists the profiles.
  size_t profile_for(const std::vector<Shape>& shapes) const;
};

std::vector<Shape> shapes_of(at::ArrayRef<at::Tensor> tensors);

}  // namespace hybrid_rt::tensorrt
