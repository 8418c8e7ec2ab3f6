#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/Device.h>

#include <string>
#include <vector>

#include "hybrid_rt/engine.h"
#include "hybrid_rt/specs.h"

namespace hybrid_rt {

/// Compares the inputs with the engine's spec (count, dtype, device, dimensions, bounds) and then runs the engine.
/// Throws Error(kInput) if they differ.
std::vector<at::Tensor> run_checked(Engine& engine, const std::string& name, const ArtifactSpec& spec,
                                    c10::Device device, const std::vector<at::Tensor>& inputs);

}  // namespace hybrid_rt
