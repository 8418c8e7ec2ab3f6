#include <ATen/ops/zeros.h>
#include <doctest/doctest.h>
#include <torch/script.h>

#include "hybrid_rt/plugin/frozen.h"

namespace {

torch::jit::Module frozen_module() {
  torch::jit::Module module("m");
  module.define(R"(
    def inner(self, x: Tensor) -> Tensor:
      if x.dim() == 1:
        return x.view([4, 6])
      return x

    def forward(self, x: Tensor) -> Tensor:
      return self.inner(x) + 1
  )");
  module.eval();
  return torch::jit::freeze(module);
}

void check_nodes(torch::jit::Function& function, torch::jit::Block* block) {
  for (torch::jit::Node* node : block->nodes()) {
    const auto stack = node->callstack();
    REQUIRE(stack.has_value());
    for (const auto& entry : (*stack)->vec()) CHECK(std::get<0>(entry) == &function);
    for (torch::jit::Block* inner : node->blocks()) check_nodes(function, inner);
  }
}

}  // namespace

TEST_CASE("the nodes of a frozen module name the function that remains") {
  torch::jit::Module frozen = frozen_module();
  hybrid_rt::forget_inlined_functions(frozen);
  const torch::jit::Method forward = frozen.get_method("forward");
  check_nodes(forward.function(), forward.graph()->block());
}

TEST_CASE("a frozen module that fails after optimisation throws and can run again") {
  torch::jit::Module frozen = frozen_module();
  hybrid_rt::forget_inlined_functions(frozen);
  for (int i = 0; i < 4; ++i) {
    CHECK(frozen.forward({at::zeros({24})}).toTensor().numel() == 24);
    CHECK_THROWS(frozen.forward({at::zeros({25})}));
  }
}
