#include "hybrid_rt/bundle.h"

#include <torch/csrc/jit/ir/constants.h>
#include <torch/csrc/jit/ir/ir.h>

#include <algorithm>
#include <optional>
#include <vector>

namespace hybrid_rt {
namespace {

/// The value with its tensors on the device; nothing if it holds none.
std::optional<c10::IValue> moved(const c10::IValue& value, c10::Device device) {
  if (value.isTensor()) {
    const at::Tensor& tensor = value.toTensor();
    if (!tensor.defined()) return std::nullopt;
    return tensor.to(device);
  }
  if (value.isTensorList()) {
    c10::List<at::Tensor> list;
    for (const at::Tensor& tensor : value.toTensorVector()) list.push_back(tensor.to(device));
    return list;
  }
  if (value.isTuple()) {
    bool holds_tensor = false;
    std::vector<c10::IValue> elements;
    for (const c10::IValue& element : value.toTupleRef().elements()) {
      const std::optional<c10::IValue> other = moved(element, device);
      holds_tensor = holds_tensor || other.has_value();
      elements.push_back(other.value_or(element));
    }
    if (holds_tensor) return c10::ivalue::Tuple::create(std::move(elements));
  }
  return std::nullopt;
}

bool takes_tensors(const torch::jit::Node* node) {
  const auto inputs = node->inputs();
  return std::any_of(inputs.begin(), inputs.end(), [](const torch::jit::Value* input) {
    return input->type()->isSubtypeOf(*c10::TensorType::get()) ||
           input->type()->isSubtypeOf(*c10::ListType::ofTensors());
  });
}

void move_constants(torch::jit::Graph& graph, torch::jit::Block* block, c10::Device device) {
  const std::vector<torch::jit::Node*> nodes(block->nodes().begin(), block->nodes().end());  // as they are now
  for (torch::jit::Node* node : nodes) {
    for (torch::jit::Block* inner : node->blocks()) move_constants(graph, inner, device);
    if (node->kind() == c10::prim::Constant) {
      const auto value = torch::jit::toIValue(node->output());
      const auto other = value ? moved(*value, device) : std::nullopt;
      if (!other) continue;
      const torch::jit::WithInsertPoint before(node);
      node->output()->replaceAllUsesWith(graph.insertConstant(*other));
      node->destroy();
    } else if (node->maybeSchema() != nullptr && !takes_tensors(node)) {
      for (size_t i = 0; i < node->inputs().size(); ++i) {
        const auto value = torch::jit::toIValue(node->input(i));
        if (!value || !value->isDevice() || !value->toDevice().is_cpu()) continue;
        const torch::jit::WithInsertPoint before(node);
        node->replaceInput(i, graph.insertConstant(device));
      }
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
