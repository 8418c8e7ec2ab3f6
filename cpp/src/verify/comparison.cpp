#include "verify/comparison.h"

#include <torch/types.h>

#include <cmath>
#include <cstdio>
#include <limits>
#include <map>
#include <utility>

#include "hybrid_rt/error.h"
#include "torchscript/value_tree.h"
#include "verify/boxes.h"

namespace hybrid_rt {
namespace {

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
Named flattened(const c10::IValue& value) {
  Named found;
  visit_leaves(value, "output", [&found](const c10::IValue& leaf, const std::string& name) {
    if (!leaf.isTensor()) {
      throw Error(ErrorKind::kInput, "verify", "the result, " + name, "tensors in lists, tuples and dicts",
                  leaf.tagKind(), "Compare such a detector with hybrid_rt.verify(detector, path, inputs) in Python.");
    }
    found.emplace_back(name, leaf.toTensor());
  });
  return found;
}

/// 0 if all is equal, 3 if nothing is.
double severity_of(const BoxMatch& match) {
  return (1 - match.recall()) + (1 - match.masks_recall()) + (1 - match.keypoint_recall());
}

double severity_of(const OutputError& error) {
  return std::isnan(error.relative_error) ? std::numeric_limits<double>::infinity() : error.relative_error;
}

void compare_tensors(Comparison& comparison, const c10::IValue& expected, const c10::IValue& found,
                     const Thresholds& thresholds, const std::string& where) {
  const Named wanted = flattened(expected);
  const Named had = flattened(found);
  if (wanted.size() != had.size()) {
    comparison.failures.push_back(
        {where + ": " + std::to_string(wanted.size()) + " tensors expected, " + std::to_string(had.size()) + " found",
         std::nullopt});
    return;
  }
  const std::map<std::string, at::Tensor> by_name(had.begin(), had.end());
  for (const auto& [name, tensor] : wanted) {
    if (by_name.count(name) != 0) continue;
    comparison.failures.push_back({where + ": output '" + name + "' expected, none found", std::nullopt});
    return;
  }
  for (const auto& [name, tensor] : wanted) {
    const OutputError error = output_error(name, tensor, by_name.at(name));
    comparison.outputs.push_back(error);
    if (error.relative_error <= thresholds.relative_error) continue;
    comparison.failures.push_back(
        {where + ", output '" + name + "': " + error_text(error, thresholds), severity_of(error)});
  }
}

void compare_detections(Comparison& comparison, const std::vector<DetectionFields>& expected,
                        const std::vector<DetectionFields>& found, const Thresholds& thresholds,
                        const std::string& where) {
  if (expected.size() != found.size()) {
    comparison.failures.push_back({where + ": detections of " + std::to_string(expected.size()) +
                                       " pictures expected, of " + std::to_string(found.size()) + " found",
                                   std::nullopt});
    return;
  }
  for (size_t i = 0; i < expected.size(); ++i) {
    BoxMatch match = match_boxes(expected[i], found[i], thresholds);
    match.where = where + ", picture " + std::to_string(i);
    std::vector<std::string> texts = differences(match, thresholds);
    const std::string wanted = fields_of(expected[i]);
    const std::string had = fields_of(found[i]);
    if (wanted != had) texts.push_back("the fields " + wanted + " expected, " + had + " found");
    if (!texts.empty()) comparison.failures.push_back({match.where + ": " + joined(texts, "; "), severity_of(match)});
    comparison.pictures.push_back(std::move(match));
  }
}

}  // namespace

OutputError output_error(const std::string& name, const at::Tensor& expected, const at::Tensor& found) {
  const OutputError not_comparable{name, std::numeric_limits<double>::infinity(), 0};
  if (expected.sizes() != found.sizes() || expected.scalar_type() != found.scalar_type()) return not_comparable;
  if (expected.numel() == 0) return {name, 0, 1};
  at::Tensor a = expected.detach().cpu().to(at::kDouble).flatten();
  at::Tensor b = found.detach().cpu().to(at::kDouble).flatten();
  const at::Tensor finite = at::logical_and(at::isfinite(a), at::isfinite(b));
  if (!finite.all().item<bool>()) {
    const at::Tensor equal = at::logical_or(a == b, at::logical_and(a.isnan(), b.isnan()));
    if (!at::logical_or(finite, equal).all().item<bool>()) return not_comparable;
    a = at::where(finite, a, 0.0);
    b = at::where(finite, b, 0.0);
  }
  const double scale = a.abs().max().item<double>();
  const double difference = (a - b).abs().max().item<double>();
  const double norms = a.norm().item<double>() * b.norm().item<double>();
  return {name, scale != 0 ? difference / scale : difference, norms != 0 ? a.dot(b).item<double>() / norms : 1};
}

std::string error_text(const OutputError& error, const Thresholds& thresholds) {
  const auto unsigned_nan = [](double value) { return std::isnan(value) ? std::abs(value) : value; };
  char text[128];
  std::snprintf(text, sizeof text, "relative error %.3g (allowed %g), cosine %.6f", unsigned_nan(error.relative_error),
                thresholds.relative_error, unsigned_nan(error.cosine));
  return text;
}

Comparison compare_results(const c10::IValue& expected, const c10::IValue& found, const Thresholds& thresholds,
                           const std::string& where) {
  Comparison comparison;
  const auto boxes = detections_of(expected);
  const auto found_boxes = detections_of(found);
  if (boxes && found_boxes) {
    compare_detections(comparison, *boxes, *found_boxes, thresholds, where);
  } else {
    compare_tensors(comparison, expected, found, thresholds, where);
  }
  return comparison;
}

}  // namespace hybrid_rt
