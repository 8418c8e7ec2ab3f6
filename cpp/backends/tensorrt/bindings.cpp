#include "bindings.h"

#include <nlohmann/json.hpp>

#include "hybrid_rt/error.h"
#include "hybrid_rt/plugin/malformed.h"

namespace hybrid_rt::tensorrt {
namespace {

using nlohmann::json;

/// Reads TensorRT-RTX's switches. An unknown value throws, because it would otherwise be ignored silently.
RtxSwitches switches_from(const json& recorded) {
  RtxSwitches switches;
  const std::string value = recorded.value("kernel_specialization", std::string("lazy"));
  switches.kernels = value == "eager"  ? RtxSwitches::Kernels::kEager
                     : value == "none" ? RtxSwitches::Kernels::kNone
                                       : RtxSwitches::Kernels::kLazy;
  const std::string graphs = recorded.value("cuda_graphs", std::string("off"));
  switches.records_graphs = graphs == "whole_graph";
  if (switches.kernels == RtxSwitches::Kernels::kLazy && value != "lazy") {
    throw malformed("tensorrt", "artifact, bindings", "'kernel_specialization' lazy, eager or none", "'" + value + "'");
  }
  if (!switches.records_graphs && graphs != "off") {
    throw malformed("tensorrt", "artifact, bindings", "'cuda_graphs' off or whole_graph", "'" + graphs + "'");
  }
  return switches;
}

bool holds(const ProfileInput& limits, const Shape& shape) {
  if (shape.size() != limits.min.size()) return false;
  for (size_t d = 0; d < shape.size(); ++d) {
    if (shape[d] < limits.min[d] || shape[d] > limits.max[d]) return false;
  }
  return true;
}

std::string text_of(const Shape& shape) {
  std::string text;
  for (size_t d = 0; d < shape.size(); ++d) text += (d ? "x" : "") + std::to_string(shape[d]);
  return text.empty() ? "a scalar" : text;
}

std::string text_of(const ProfileInput& limits) {
  std::string text;
  for (size_t d = 0; d < limits.min.size(); ++d) {
    text += (d ? "x" : "") + std::to_string(limits.min[d]);
    if (limits.max[d] != limits.min[d]) text += ".." + std::to_string(limits.max[d]);
  }
  return text.empty() ? "a scalar" : text;
}

}  // namespace

Bindings Bindings::from_json(const at::Tensor& bytes, const ArtifactSpec& spec) {
  const char* const data = reinterpret_cast<const char*>(bytes.const_data_ptr<uint8_t>());
  const json parsed = json::parse(data, data + bytes.numel(), nullptr, /*allow_exceptions=*/false);
  Bindings bindings;
  try {
    bindings.inputs = parsed.at("inputs").get<std::vector<std::string>>();
    bindings.outputs = parsed.at("outputs").get<std::vector<std::string>>();
    bindings.is_version_compatible = parsed.value("version_compatible", false);
    bindings.switches = switches_from(parsed);
    for (const json& profile : parsed.at("profiles")) {
      std::vector<ProfileInput>& inputs = bindings.profiles.emplace_back();
      for (const json& input : profile) {
        inputs.push_back({input.at("min").get<Shape>(), input.at("max").get<Shape>()});
      }
    }
  } catch (const json::exception& error) {
    throw malformed("tensorrt", "artifact, bindings", "names and profiles", error.what());
  }
  bool is_right = bindings.inputs.size() == spec.inputs.size() && bindings.outputs.size() == spec.outputs.size() &&
                  !bindings.profiles.empty();
  for (const auto& profile : bindings.profiles) {
    is_right = is_right && profile.size() == spec.inputs.size();
    for (const ProfileInput& input : profile) is_right = is_right && input.min.size() == input.max.size();
  }
  if (!is_right) throw malformed("tensorrt", "artifact, bindings", "those of its spec's tensors", "others");
  return bindings;
}

size_t Bindings::profile_for(const std::vector<Shape>& shapes) const {
  for (size_t i = 0; i < profiles.size(); ++i) {
    bool is_inside = true;
    for (size_t k = 0; k < shapes.size(); ++k) is_inside = is_inside && holds(profiles[i][k], shapes[k]);
    if (is_inside) return i;
  }
  std::string known;
  std::string got;
  for (size_t i = 0; i < profiles.size(); ++i) {
    known += (i ? "; profile " : "profile ") + std::to_string(i) + ":";
    for (const ProfileInput& input : profiles[i]) known += " " + text_of(input);
  }
  for (const Shape& shape : shapes) got += (got.empty() ? "" : " ") + text_of(shape);
  throw Error(ErrorKind::kInput, "tensorrt", "inputs", "shapes within one optimisation profile (" + known + ")", got,
              "Resize the images, or convert again with profiles that cover this size.");
}

std::vector<Shape> shapes_of(at::ArrayRef<at::Tensor> tensors) {
  std::vector<Shape> shapes;
  for (const at::Tensor& tensor : tensors) shapes.push_back(tensor.sizes().vec());
  return shapes;
}

}  // namespace hybrid_rt::tensorrt
