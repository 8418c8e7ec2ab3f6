#pragma once

#include <torch/script.h>

#include "bundle/archive.h"
#include "hybrid_rt/load_options.h"

namespace hybrid_rt {

/// Runs a loaded bundle on images of the sizes that the options name, as often as TorchScript needs to optimise itself,
/// and then as often concurrently as it will be called. Which inputs are images, the manifest records; the others are
/// the golden sample's. Without a golden sample, forward must take images alone. Throws Error.
void warm_up(torch::jit::Module& module, const Archive& file, const LoadOptions& options);

}  // namespace hybrid_rt
