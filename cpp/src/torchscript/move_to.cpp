#include "hybrid_rt/bundle.h"

#include <torch/csrc/jit/ir/constants.h>
#include <torch/csrc/jit/ir/ir.h>

#include <algorithm>
#include <vector>

#include "torchscript/value_tree.h"

namespace hybrid_rt {
namespace {

bool takes_tensors(const torch::jit::Node* node) {
  const auto inputs = node->inputs();
  return std::any_of(inputs.begin(), inputs.end(), [](const torch::jit::Value* input) {
    return input->type()->isSubtypeOf(*c10::TensorType::get()) ||
           input->type()->isSubtypeOf(*c10::ListType::ofTensors());
  });
}

/// Makes a node that creates a tensor from numbers create it on `device`, whether it names a device or none. torch
/// creates it on the CPU if it names none, where constants that the tensor meets no longer are.
void move_creation(torch::jit::Graph& graph, torch::jit::Node* node, c10::Device device) {
  const auto& arguments = node->schema().arguments();
  for (size_t i = 0; i < node->inputs().size(); ++i) {
    const auto value = torch::jit::toIValue(node->input(i));
    if (!value) continue;
    const bool names_none = value->isNone() && i < arguments.size() && arguments[i].name() == "device";
    if (!names_none && (!value->isDevice() || value->toDevice() == device)) continue;
    const torch::jit::WithInsertPoint before(node);
    node->replaceInput(i, graph.insertConstant(device));
  }
}

void move_constants(torch::jit::Graph& graph, torch::jit::Block* block, c10::Device device) {
  const std::vector<torch::jit::Node*> nodes(block->nodes().begin(), block->nodes().end());  // a copy
  for (torch::jit::Node* node : nodes) {
    for (torch::jit::Block* inner : node->blocks()) move_constants(graph, inner, device);
    if (node->kind() == c10::prim::Constant) {
      const auto value = torch::jit::toIValue(node->output());
      if (!value || !holds_tensor(*value)) continue;
      const c10::IValue moved = map_tensors(*value, [device](const at::Tensor& tensor) { return tensor.to(device); });
      const torch::jit::WithInsertPoint before(node);
      node->output()->replaceAllUsesWith(graph.insertConstant(moved));
      node->destroy();
    } else if (node->maybeSchema() != nullptr && !takes_tensors(node)) {
      move_creation(graph, node, device);
    }
  }
}

}  // namespace

void move_to(torch::jit::Module& module, c10::Device device) {
  module.to(device);
  const auto method = module.find_method("forward");
  if (!method) return;
  const std::shared_ptr<torch::jit::Graph> graph = method->graph();
  move_constants(*graph, graph->block(), device);
}

}  // namespace hybrid_rt
