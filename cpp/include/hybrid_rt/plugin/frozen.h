#pragma once

#include <torch/csrc/jit/api/module.h>

namespace hybrid_rt {

/// Lets operators of a module that torch::jit::freeze returned fail safely. Freezing inlines functions and deletes
/// them, but torch reads their names from a node to report where an operator failed, which would end the process ("pure
/// virtual method called", or a segmentation fault). Afterwards each node refers to the one remaining function and
/// keeps its location in the source. Call it before the module runs.
void forget_inlined_functions(torch::jit::Module& frozen);

}  // namespace hybrid_rt
