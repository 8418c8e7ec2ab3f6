#include "engine/input_check.h"

#include <ATen/core/grad_mode.h>

#include "common/dtypes.h"
#include "common/fork.h"
#include "hybrid_rt/error.h"

namespace hybrid_rt {
namespace {

std::string shape_of(const at::Tensor& tensor) {
  std::string text;
  for (int64_t d = 0; d < tensor.dim(); ++d) text += (d ? "x" : "") + std::to_string(tensor.size(d));
  return text.empty() ? "a scalar" : text;
}

void check(const std::string& name, const ArtifactSpec& spec, c10::Device device,
           const std::vector<at::Tensor>& inputs) {
  const auto refuse = [&](const std::string& subject, const std::string& expected, const std::string& got,
                          const std::string& remedy) {
    throw Error(ErrorKind::kInput, spec.backend, "engine '" + name + "', " + subject, expected, got, remedy);
  };
  if (inputs.size() != spec.inputs.size()) {
    refuse("inputs", std::to_string(spec.inputs.size()) + " tensors", std::to_string(inputs.size()),
           "Call it as the detector's own head does.");
  }
  for (size_t i = 0; i < inputs.size(); ++i) {
    const at::Tensor& input = inputs[i];
    const TensorSpec& expected = spec.inputs[i];
    const std::string subject = "input '" + expected.name + "'";
    if (!input.defined()) refuse(subject, to_string(expected), "an undefined tensor", "Pass a tensor.");
    if (input.scalar_type() != expected.dtype) {
      refuse(subject, name_of(expected.dtype), name_of(input.scalar_type()), "Convert the input before the call.");
    }
    if (input.device() != device) {
      refuse(subject, "a tensor on " + device.str(), "one on " + input.device().str(),
             "Move the input, or load the bundle with that device.");
    }
    if (input.dim() != static_cast<int64_t>(expected.min.size())) {
      refuse(subject, std::to_string(expected.min.size()) + " dimensions (" + to_string(expected) + ")",
             std::to_string(input.dim()) + " (" + shape_of(input) + ")", "Add or remove the batch dimension.");
    }
    for (int64_t d = 0; d < input.dim(); ++d) {
      const auto k = static_cast<size_t>(d);
      const int64_t size = input.size(d);
      if (size < expected.min[k] || (expected.max[k] != TensorSpec::kUnbounded && size > expected.max[k])) {
        refuse(subject + ", dimension " + std::to_string(d), to_string(expected), shape_of(input),
               "Resize the images, or convert again with shapes= that cover this size.");
      }
    }
  }
}

}  // namespace

std::vector<at::Tensor> run_checked(Engine& engine, const std::string& name, const ArtifactSpec& spec,
                                    c10::Device device, const std::vector<at::Tensor>& inputs) {
  check(name, spec, device, inputs);
  const EngineCall call;
  const at::NoGradGuard no_grad;
  for (const at::Tensor& input : inputs) {
    if (input.is_contiguous()) continue;
    std::vector<at::Tensor> contiguous;
    for (const at::Tensor& each : inputs) contiguous.push_back(each.contiguous());
    return engine.run(contiguous);
  }
  return engine.run(inputs);
}

}  // namespace hybrid_rt
