#include "hybrid_rt/plugin/backend.h"
#include "hybrid_rt/machine.h"
#include "hybrid_rt/plugin/frozen.h"
#include "hybrid_rt/plugin/script_check.h"

#include <caffe2/serialize/read_adapter_interface.h>
#include <torch/script.h>

#include <algorithm>
#include <cstring>
#include <set>

// The reference and the fallback: the segment as frozen TorchScript. The layout of its weights is chosen when it is
// loaded, so that the file can share the same bytes with other engines.

namespace hybrid_rt {
namespace {

constexpr char kName[] = "torchscript";

Error failed(const std::string& subject, const std::string& expected, const c10::Error& error) {
  return Error(ErrorKind::kBackend, kName, subject, expected, error.what_without_backtrace(),
               "Convert the detector again with the torch that is installed here.");
}

/// Reads an archive from a blob without copying the blob.
class BlobReader : public caffe2::serialize::ReadAdapterInterface {
 public:
  explicit BlobReader(at::Tensor bytes) : bytes_(std::move(bytes)) {}

  size_t size() const override { return static_cast<size_t>(bytes_.numel()); }

  size_t read(uint64_t position, void* buffer, size_t count, const char* /*what*/) const override {
    if (position >= size()) return 0;
    const size_t available = std::min(count, size() - static_cast<size_t>(position));
    std::memcpy(buffer, bytes_.const_data_ptr<uint8_t>() + position, available);
    return available;
  }

 private:
  at::Tensor bytes_;
};

/// Returns an output that the caller may write into: a copy if it may be an input, a weight, another output, or a view
/// of one.
at::Tensor owned(const at::Tensor& output) {
  const bool is_shared = output.use_count() > 1 || output.storage().use_count() > 1;
  return is_shared ? output.clone(at::MemoryFormat::Contiguous) : output.contiguous();
}

bool has_channels(const at::Tensor& tensor) { return tensor.dim() == 4 && tensor.is_floating_point(); }

/// Converts weights to channels_last, which oneDNN's kernels prefer. docs/torchscript.md compares this with
/// optimize_for_inference, which packs the weights for oneDNN but keeps the layout between operations.
void to_channels_last(torch::jit::Block* block) {
  for (torch::jit::Node* node : block->nodes()) {
    if (node->kind() == c10::prim::Constant && node->hasAttribute(c10::attr::value) &&
        node->kindOf(c10::attr::value) == torch::jit::AttributeKind::t && has_channels(node->t(c10::attr::value))) {
      node->t_(c10::attr::value, node->t(c10::attr::value).contiguous(at::MemoryFormat::ChannelsLast));
    }
    for (torch::jit::Block* inner : node->blocks()) to_channels_last(inner);
  }
}

bool has_convolutions(const torch::jit::Block* block) {
  static const std::set<c10::Symbol> kinds{c10::Symbol::fromQualString("aten::_convolution"),
                                           c10::Symbol::fromQualString("aten::conv2d")};
  for (const torch::jit::Node* node : block->nodes()) {
    if (kinds.contains(node->kind())) return true;
    for (const torch::jit::Block* inner : node->blocks()) {
      if (has_convolutions(inner)) return true;
    }
  }
  return false;
}

bool has_bf16_instructions() {
  static const bool has = [] {
    const std::set<std::string> flags = Machine::here().cpu_flags;
    return flags.contains("avx512_bf16") || flags.contains("amx_bf16") || flags.contains("bf16");
  }();
  return has;
}

bool is_dtype(const torch::jit::Node* node, size_t i, c10::ScalarType dtype) {
  const torch::jit::Value* input = node->input(i);
  if (node->schema().arguments().at(i).name() != "dtype" || input->node()->kind() != c10::prim::Constant) return false;
  const auto value = torch::jit::toIValue(input);
  return value && value->isInt() && value->toInt() == static_cast<int64_t>(dtype);
}

/// Converts a bf16 segment to f32 for a CPU that could only emulate bf16. This is the inverse of
/// hybrid_rt/torchscript/bfloat16.py, except that the weights stay rounded.
void to_float(torch::jit::Graph& graph, torch::jit::Block* block) {
  for (torch::jit::Node* node : block->nodes()) {
    for (torch::jit::Block* inner : node->blocks()) to_float(graph, inner);
    if (node->kind() == c10::prim::Constant) {
      if (node->hasAttribute(c10::attr::value) && node->kindOf(c10::attr::value) == torch::jit::AttributeKind::t &&
          node->t(c10::attr::value).scalar_type() == c10::kBFloat16) {
        node->t_(c10::attr::value, node->t(c10::attr::value).to(c10::kFloat));
        node->output()->inferTypeFrom(node->t(c10::attr::value));
      }
    } else if (node->maybeSchema() != nullptr) {
      const size_t count = std::min(node->inputs().size(), node->schema().arguments().size());
      for (size_t i = 0; i < count; ++i) {
        if (!is_dtype(node, i, c10::kBFloat16)) continue;
        const torch::jit::WithInsertPoint before(node);
        node->replaceInput(i, graph.insertConstant(static_cast<int64_t>(c10::kFloat)));
      }
    }
  }
}

class TorchScriptEngine : public Engine {
 public:
  /// `is_widened`: the engine computes in f32 although the spec says bf16.
  TorchScriptEngine(torch::jit::Module module, std::vector<TensorSpec> outputs, bool is_channels_last, bool is_widened,
                    std::string description)
      : module_(std::move(module)),
        outputs_(std::move(outputs)),
        is_channels_last_(is_channels_last),
        is_widened_(is_widened),
        description_(std::move(description)) {}

  std::vector<at::Tensor> run(at::ArrayRef<at::Tensor> inputs) override {
    const at::NoGradGuard no_grad;
    std::vector<c10::IValue> arguments;
    for (at::Tensor input : inputs) {
      if (is_widened_ && input.scalar_type() == c10::kBFloat16) input = input.to(c10::kFloat);
      if (is_channels_last_ && has_channels(input)) input = input.contiguous(at::MemoryFormat::ChannelsLast);
      arguments.emplace_back(std::move(input));
    }
    try {
      const c10::IValue result = module_.forward(std::move(arguments));
      std::vector<at::Tensor> outputs;
      for (const c10::IValue& output : result.toTupleRef().elements()) {
        const at::Tensor tensor = owned(output.toTensor());
        outputs.push_back(is_widened_ ? tensor.to(outputs_.at(outputs.size()).dtype) : tensor);
      }
      return outputs;
    } catch (const c10::Error& error) {
      throw failed("run", "the segment to run", error);
    } catch (const std::exception& error) {  // errors of the interpreter
      throw Error(ErrorKind::kBackend, kName, "run", "the segment to run", error.what(),
                  "Pass inputs like those that the segment gets in the detector.");
    }
  }

  std::string description() const override { return description_; }

 private:
  torch::jit::Module module_;
  std::vector<TensorSpec> outputs_;
  bool is_channels_last_;
  bool is_widened_;
  std::string description_;
};

class TorchScriptBackend : public Backend {
 public:
  Availability availability() override { return {true, "", TORCH_VERSION, {"cpu", "cuda"}}; }

  std::shared_ptr<Engine> load(const ArtifactSpec& spec, const BlobMap& blobs, const EngineOptions& options) override {
    try {
      const auto bytes = std::make_shared<BlobReader>(blobs.at("module"));
      check_script(bytes, "the TorchScript variant");
      auto module = torch::jit::load(bytes, options.device);
      const bool is_emulated = spec.precision == "bf16" && options.device.is_cpu() && !has_bf16_instructions();
      const bool is_widened = is_emulated && !options.emulate_precision;
      bool is_channels_last = false;
      if (options.device.is_cpu()) {
        module = torch::jit::freeze(module);
        forget_inlined_functions(module);
        const std::shared_ptr<torch::jit::Graph> graph = module.get_method("forward").graph();
        if (is_widened) to_float(*graph, graph->block());
        is_channels_last = has_convolutions(graph->block());
        if (is_channels_last) to_channels_last(graph->block());
      }
      std::string precision = spec.precision;
      if (is_emulated) precision = is_widened ? "fp32 (this CPU has no bf16 instructions)" : "bf16 (emulated)";
      return std::make_shared<TorchScriptEngine>(
          std::move(module), spec.outputs, is_channels_last, is_widened,
          std::string("torchscript ") + TORCH_VERSION + ", " + precision + ", " + options.device.str());
    } catch (const c10::Error& error) {
      throw failed("artifact", "a module that torch " TORCH_VERSION " reads", error);
    }
  }
};

}  // namespace

HYBRID_RT_PLUGIN("torchscript", TorchScriptBackend)

}  // namespace hybrid_rt
