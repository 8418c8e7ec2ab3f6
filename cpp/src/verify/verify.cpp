#include "hybrid_rt/verify.h"

#include <c10/core/InferenceMode.h>

#include <cstdio>
#include <limits>
#include <map>
#include <nlohmann/json.hpp>

#include "hybrid_rt/error.h"
#include "torchscript/golden.h"
#include "verify/boxes.h"

namespace hybrid_rt {
namespace {

using Json = nlohmann::ordered_json;
using Named = std::vector<std::pair<std::string, at::Tensor>>;

std::string joined(const std::vector<std::string>& parts, const char* separator) {
  std::string text;
  for (const std::string& part : parts) text += (text.empty() ? "" : separator) + part;
  return text;
}

std::string fields_of(const DetectionFields& picture) {
  std::vector<std::string> names;
  for (const auto& [name, tensor] : picture) names.push_back(name);
  return joined(names, ", ");
}

/// The tensors of a result, each named by the keys and indices that lead to it. Throws Error(kInput) for others.
void flatten(const c10::IValue& value, const std::string& name, Named& found) {
  if (value.isTensor()) {
    found.emplace_back(name, value.toTensor().detach().cpu());
  } else if (value.isGenericDict()) {
    for (const auto& entry : value.toGenericDict()) {
      const std::string key = entry.key().isString() ? entry.key().toStringRef() : "?";
      flatten(entry.value(), name + "." + key, found);
    }
  } else if (value.isList() || value.isTuple()) {
    size_t i = 0;
    for (const c10::IValue& entry : elements_of(value)) {
      flatten(entry, name + "." + std::to_string(i++), found);
    }
  } else {
    throw Error(ErrorKind::kInput, "verify", "the result, " + name, "tensors in lists, tuples and dicts",
                value.tagKind(), "Compare such a detector with hybrid_rt.verify(detector, path, inputs) in Python.");
  }
}

OutputError error_of(const std::string& name, const at::Tensor& expected, const at::Tensor& found) {
  if (expected.sizes() != found.sizes() || expected.scalar_type() != found.scalar_type() ||
      !at::isfinite(found).all().item<bool>()) {
    return {name, std::numeric_limits<double>::infinity(), 0};
  }
  if (expected.numel() == 0) return {name, 0, 1};
  const at::Tensor a = expected.to(at::kDouble).flatten();
  const at::Tensor b = found.to(at::kDouble).flatten();
  const double scale = a.abs().max().item<double>();
  const double difference = (a - b).abs().max().item<double>();
  const double norms = a.norm().item<double>() * b.norm().item<double>();
  return {name, scale != 0 ? difference / scale : difference, norms != 0 ? a.dot(b).item<double>() / norms : 1};
}

void compare_tensors(Verification& verification, const c10::IValue& expected, const c10::IValue& found,
                     const std::string& where) {
  Named wanted;
  Named had;
  flatten(expected, "output", wanted);
  flatten(found, "output", had);
  if (wanted.size() != had.size()) {
    verification.failures.push_back(where + ": " + std::to_string(wanted.size()) + " tensors expected, " +
                                    std::to_string(had.size()) + " found");
    return;
  }
  const std::map<std::string, at::Tensor> by_name(had.begin(), had.end());
  for (const auto& [name, tensor] : wanted) {
    if (by_name.count(name) != 0) continue;
    verification.failures.push_back(where + ": output '" + name + "' expected, none found");
    return;
  }
  for (const auto& [name, tensor] : wanted) {
    const OutputError error = error_of(name, tensor, by_name.at(name));
    verification.outputs.push_back(error);
    if (error.relative_error <= verification.thresholds.relative_error) continue;
    char text[128];
    std::snprintf(text, sizeof text, "relative error %.3g (allowed %g), cosine %.6f", error.relative_error,
                  verification.thresholds.relative_error, error.cosine);
    verification.failures.push_back(where + ", output '" + name + "': " + text);
  }
}

void compare_detections(Verification& verification, const std::vector<DetectionFields>& expected,
                        const std::vector<DetectionFields>& found, const std::string& where) {
  if (expected.size() != found.size()) {
    verification.failures.push_back(where + ": detections of " + std::to_string(expected.size()) +
                                    " pictures expected, of " + std::to_string(found.size()) + " found");
    return;
  }
  for (size_t i = 0; i < expected.size(); ++i) {
    BoxMatch match = match_boxes(expected[i], found[i], verification.thresholds);
    match.where = where + ", picture " + std::to_string(i);
    std::vector<std::string> texts = differences(match, verification.thresholds);
    const std::string wanted = fields_of(expected[i]);
    const std::string had = fields_of(found[i]);
    if (wanted != had) texts.push_back("the fields " + wanted + " expected, " + had + " found");
    if (!texts.empty()) verification.failures.push_back(match.where + ": " + joined(texts, "; "));
    verification.pictures.push_back(std::move(match));
  }
}

Json or_null(const std::optional<double>& value) { return value ? Json(*value) : Json(nullptr); }

Json json_of(const BoxMatch& match) {
  return {{"expected", match.expected},
          {"found", match.found},
          {"matched", match.matched},
          {"min_iou", match.min_iou},
          {"max_score_difference", match.max_score_difference},
          {"expected_at_cut", match.expected_at_cut},
          {"found_at_cut", match.found_at_cut},
          {"max_box_drift", match.max_box_drift},
          {"masks", match.masks},
          {"masks_differ", match.masks_differ},
          {"min_mask_iou", or_null(match.min_mask_iou)},
          {"keypoints", match.keypoints},
          {"keypoints_differ", match.keypoints_differ},
          {"max_keypoint_distance", or_null(match.max_keypoint_distance)},
          {"max_keypoint_score_difference", or_null(match.max_keypoint_score_difference)},
          {"where", match.where},
          {"lost", match.lost}};
}

}  // namespace

Thresholds Thresholds::from_json(const std::string& json) {
  try {
    const auto values = nlohmann::json::parse(json);
    Thresholds thresholds;
    thresholds.iou = values.at("iou").get<double>();
    thresholds.score = values.at("score").get<double>();
    thresholds.recall = values.at("recall").get<double>();
    thresholds.relative_error = values.at("relative_error").get<double>();
    thresholds.mask_iou = values.at("mask_iou").get<double>();
    thresholds.keypoint_distance = values.at("keypoint_distance").get<double>();
    thresholds.keypoint_recall = values.at("keypoint_recall").get<double>();
    return thresholds;
  } catch (const nlohmann::json::exception& error) {
    throw Error(ErrorKind::kBundle, "bundle", "thresholds", "a number for each", error.what(),
                "The file was altered or damaged: copy or convert it again.");
  }
}

Verification compare(const c10::IValue& expected, const c10::IValue& found, const Thresholds& thresholds,
                     const std::string& where) {
  Verification verification;
  verification.thresholds = thresholds;
  const auto boxes = detections_of(expected);
  const auto found_boxes = detections_of(found);
  if (boxes && found_boxes) {
    compare_detections(verification, *boxes, *found_boxes, where);
  } else {
    compare_tensors(verification, expected, found, where);
  }
  return verification;
}

Verification verify(const std::string& path, torch::jit::Module& module, c10::Device device,
                    const std::optional<Thresholds>& thresholds) {
  const c10::InferenceMode inference_mode;
  const auto& arguments = module.get_method("forward").function().getSchema().arguments();
  const GoldenSample golden = read_golden(path, arguments, device);
  const c10::IValue found = module.forward(golden.inputs);
  Verification verification = compare(golden.expected, found, thresholds.value_or(golden.thresholds), "golden sample");
  verification.precision = golden.precision;
  verification.compared = golden.compared;
  verification.engines = engines(module);
  return verification;
}

Verification verify(const std::string& path, const LoadOptions& options, const std::optional<Thresholds>& thresholds) {
  torch::jit::Module module = load(path, options);
  return verify(path, module, options.device, thresholds);
}

std::string to_json(const Verification& verification) {
  const Thresholds& thresholds = verification.thresholds;
  Json document = {{"passed", verification.passed()}, {"precision", verification.precision}};
  document["engines"] = Json::object();
  for (const EngineChoice& engine : verification.engines) document["engines"][engine.name] = engine.description;
  document["pictures"] = Json::array();
  for (const BoxMatch& match : verification.pictures) document["pictures"].push_back(json_of(match));
  document["tensors"] = Json::array();
  for (const OutputError& error : verification.outputs) {
    document["tensors"].push_back(
        {{"output", error.output}, {"relative_error", error.relative_error}, {"cosine", error.cosine}});
  }
  document["failures"] = verification.failures;
  document["thresholds"] = {{"iou", thresholds.iou},
                            {"score", thresholds.score},
                            {"recall", thresholds.recall},
                            {"relative_error", thresholds.relative_error},
                            {"mask_iou", thresholds.mask_iou},
                            {"keypoint_distance", thresholds.keypoint_distance},
                            {"keypoint_recall", thresholds.keypoint_recall}};
  return document.dump(-1, ' ', false, Json::error_handler_t::replace);
}

}  // namespace hybrid_rt
