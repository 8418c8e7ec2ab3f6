#pragma once

#include <torch/csrc/jit/api/module.h>

namespace hybrid_rt {

/// Makes a module that torch::jit::freeze returned safe to fail. Freezing inlines functions and then drops them, and
/// torch asks a node for the names of its functions to say where an operator failed, which ends the process ("pure
/// virtual method called", or a segmentation fault). Afterwards each node has the one function that stays, and its
/// place in the source. To be called before the module has run.
void forget_inlined_functions(torch::jit::Module& frozen);

}  // namespace hybrid_rt
