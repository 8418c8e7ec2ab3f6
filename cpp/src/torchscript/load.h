#pragma once

#include <torch/script.h>

#include <memory>

#include "bundle/archive.h"
#include "hybrid_rt/load_options.h"

namespace hybrid_rt {

/// Does the same as hybrid_rt::load for an open file.
torch::jit::Module load(const std::shared_ptr<Archive>& file, const LoadOptions& options);

}  // namespace hybrid_rt
