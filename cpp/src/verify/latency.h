#pragma once

#include <torch/script.h>

#include <vector>

#include "bundle/archive.h"
#include "spec/latency.h"

namespace hybrid_rt {

/// Times a loaded bundle on this machine, and compares the times with the latency contract in its file. `inputs` are
/// those of the golden sample; their images are resized. Throws Error: kBundle if there is no contract, kOption for
/// options that do not fit it.
LatencyCheck check_latency(const Archive& file, torch::jit::Module& module, const std::vector<c10::IValue>& inputs,
                           c10::Device device, const LatencyOptions& options);

}  // namespace hybrid_rt
