#pragma once

#include <torch/script.h>

#include <memory>

#include "bundle/archive.h"
#include "hybrid_rt/load_options.h"

namespace hybrid_rt {

/// hybrid_rt::load of a file that is open.
torch::jit::Module load(const std::shared_ptr<Archive>& file, const LoadOptions& options);

}  // namespace hybrid_rt
