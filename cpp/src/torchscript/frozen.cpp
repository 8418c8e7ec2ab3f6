#include "hybrid_rt/plugin/frozen.h"

#include <torch/csrc/jit/ir/ir.h>
#include <torch/csrc/jit/ir/scope.h>

namespace hybrid_rt {
namespace {

void forget(torch::jit::Function& function, torch::jit::Block* block) {
  for (torch::jit::Node* node : block->nodes()) {
    node->setCallStack(c10::make_intrusive<torch::jit::InlinedCallStack>(&function, node->sourceRange()));
    for (torch::jit::Block* inner : node->blocks()) forget(function, inner);
  }
}

}  // namespace

void forget_inlined_functions(torch::jit::Module& frozen) {
  for (const torch::jit::Method& method : frozen.get_methods()) forget(method.function(), method.graph()->block());
}

}  // namespace hybrid_rt
