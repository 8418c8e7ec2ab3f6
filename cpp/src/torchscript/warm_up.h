#pragma once

#include <torch/script.h>

#include "bundle/archive.h"
#include "hybrid_rt/load_options.h"

namespace hybrid_rt {

/// Runs a loaded bundle on images of the sizes in the options, as often as TorchScript needs to optimise itself, and
/// then with the number of concurrent calls that it is loaded for. The manifest records which inputs are images; the
/// others are the golden sample's. Without a golden sample, forward must take only images. Throws Error.
void warm_up(torch::jit::Module& module, const Archive& file, const LoadOptions& options);

}  // namespace hybrid_rt
