#pragma once

#include <torch/script.h>

#include "bundle/archive.h"
#include "hybrid_rt/load_options.h"

namespace hybrid_rt {

/// Runs a loaded bundle on pictures of the sizes that the options name, as often as TorchScript needs to optimise
/// itself, and then as often at one time as it will be called. The other arguments are the golden sample's; without
/// one, forward must take pictures alone. Throws Error.
void warm_up(torch::jit::Module& module, const Archive& file, const LoadOptions& options);

}  // namespace hybrid_rt
