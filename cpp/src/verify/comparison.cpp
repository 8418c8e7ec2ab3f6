#include "verify/comparison.h"

#include <torch/types.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <limits>
#include <map>
#include <utility>

#include "common/joined.h"
#include "hybrid_rt/error.h"
#include "torchscript/value_tree.h"
#include "verify/boxes.h"
#include "verify/near_ties.h"

namespace hybrid_rt {
namespace {

using Leaves = std::vector<std::pair<std::string, c10::IValue>>;

/// Maximum number of bytes of a text in a failure.
constexpr size_t kLongestText = 100;

std::string fields_of(const DetectionFields& image) {
  std::vector<std::string> names;
  for (const auto& [name, tensor] : image) names.push_back(name);
  return joined(names, ", ");
}

bool is_empty_container(const c10::IValue& value) {
  return value.isList() || value.isTuple() || value.isGenericDict();  // visit_leaves() visits only empty ones
}

bool is_absent(const c10::IValue& value) { return value.isNone() || (value.isTensor() && !value.toTensor().defined()); }

/// Returns the leaves of a result: tensors and plain values, each named by the keys and indices that lead to it. Throws
/// Error(kInput) for any other leaf.
Leaves leaves_of(const c10::IValue& value) {
  Leaves found;
  visit_leaves(value, "output", [&found](const c10::IValue& leaf, const std::string& name) {
    const bool is_plain = is_absent(leaf) || leaf.isBool() || leaf.isInt() || leaf.isDouble() || leaf.isString();
    if (!leaf.isTensor() && !is_plain && !is_empty_container(leaf)) {
      throw Error(ErrorKind::kInput, "verify", "the result, " + name,
                  "tensors, numbers, strings and None in lists, tuples and dicts", leaf.tagKind(),
                  "Wrap the detector in a module that returns such values.");
    }
    found.emplace_back(name, leaf);
  });
  return found;
}

bool is_tensor(const c10::IValue& value) { return value.isTensor() && value.toTensor().defined(); }

std::string described(const c10::IValue& value) {
  if (is_tensor(value)) return "a tensor";
  if (is_absent(value)) return "None";
  if (value.isString()) return "'" + value.toStringRef().substr(0, kLongestText) + "'";
  if (value.isBool()) return value.toBool() ? "True" : "False";
  if (value.isDouble()) {
    char text[32];
    std::snprintf(text, sizeof text, "%.9g", value.toDouble());
    const bool looks_whole = std::string(text).find_first_of(".enai") == std::string::npos;
    return looks_whole ? std::string(text) + ".0" : text;
  }
  if (value.isInt()) return std::to_string(value.toInt());
  return value.isTuple() ? "()" : value.isList() ? "[]" : "{}";
}

/// Returns true if two plain values are equal. Floats may differ by rounding, other values must be identical, including
/// their types.
bool are_equal(const c10::IValue& expected, const c10::IValue& found, const Thresholds& thresholds) {
  if (is_absent(expected) || is_absent(found)) return is_absent(expected) && is_absent(found);
  if (is_empty_container(expected)) return is_empty_container(found);
  if (expected.tagKind() != found.tagKind()) return false;
  if (expected.isString()) return expected.toStringRef() == found.toStringRef();
  if (expected.isBool()) return expected.toBool() == found.toBool();
  if (expected.isInt()) return expected.toInt() == found.toInt();
  const double a = expected.toDouble();
  const double b = found.toDouble();
  if (a == b || (std::isnan(a) && std::isnan(b))) return true;
  return std::abs(a - b) <= thresholds.relative_error * std::max(std::abs(a), std::abs(b)) && std::isfinite(a - b);
}

/// Returns 0 if everything matches, 3 if nothing does.
double severity_of(const BoxMatch& match) {
  return (1 - match.recall()) + (1 - match.masks_recall()) + (1 - match.keypoint_recall());
}

double severity_of(const OutputError& error) {
  return std::isnan(error.relative_error) ? std::numeric_limits<double>::infinity() : error.relative_error;
}

/// Returns the error of each tensor. Rows of detections that differ may have changed places, see near_ties.h.
std::map<std::string, OutputError> output_errors(const Leaves& wanted, const std::map<std::string, c10::IValue>& had,
                                                 const Thresholds& thresholds) {
  std::map<std::string, OutputError> errors;
  NamedTensors expected;
  NamedTensors found;
  bool are_equal = true;
  for (const auto& [name, leaf] : wanted) {
    if (!is_tensor(leaf) || !is_tensor(had.at(name))) continue;
    expected[name] = leaf.toTensor();
    found[name] = had.at(name).toTensor();
    errors[name] = output_error(name, expected[name], found[name]);
    are_equal = are_equal && errors[name].relative_error <= thresholds.relative_error;
  }
  if (are_equal) return errors;
  for (const auto& [name, tensor] : in_expected_order(expected, found, thresholds.relative_error)) {
    errors[name] = output_error(name, expected[name], tensor);
  }
  return errors;
}

void compare_leaves(Comparison& comparison, const c10::IValue& expected, const c10::IValue& found,
                    const Thresholds& thresholds, const std::string& where) {
  const auto fail = [&](const std::string& text, std::optional<double> severity = std::nullopt) {
    comparison.failures.push_back({where + text, severity});
  };
  const Leaves wanted = leaves_of(expected);
  const Leaves had = leaves_of(found);
  if (wanted.size() != had.size()) {
    const bool only_tensors =
        std::all_of(wanted.begin(), wanted.end(), [](const auto& leaf) { return is_tensor(leaf.second); });
    fail(": " + std::to_string(wanted.size()) + (only_tensors ? " tensors" : " values") + " expected, " +
         std::to_string(had.size()) + " found");
    return;
  }
  const std::map<std::string, c10::IValue> by_name(had.begin(), had.end());
  for (const auto& [name, leaf] : wanted) {
    if (by_name.count(name) != 0) continue;
    fail(": output '" + name + "' expected, none found");
    return;
  }
  const std::map<std::string, OutputError> errors = output_errors(wanted, by_name, thresholds);
  for (const auto& [name, leaf] : wanted) {
    const c10::IValue& other = by_name.at(name);
    if (is_tensor(leaf) && is_tensor(other)) {
      const OutputError& error = errors.at(name);
      comparison.outputs.push_back(error);
      if (error.relative_error <= thresholds.relative_error) continue;
      fail(", output '" + name + "': " + error_text(error, thresholds), severity_of(error));
    } else if (is_tensor(leaf) || is_tensor(other) || !are_equal(leaf, other, thresholds)) {
      fail(", output '" + name + "': " + described(leaf) + " expected, " + described(other) + " found");
    }
  }
}

void compare_detections(Comparison& comparison, const std::vector<DetectionFields>& expected,
                        const std::vector<DetectionFields>& found, const Thresholds& thresholds,
                        const std::string& where) {
  if (expected.size() != found.size()) {
    comparison.failures.push_back({where + ": detections of " + std::to_string(expected.size()) +
                                       " images expected, of " + std::to_string(found.size()) + " found",
                                   std::nullopt});
    return;
  }
  for (size_t i = 0; i < expected.size(); ++i) {
    BoxMatch match = match_boxes(expected[i], found[i], thresholds);
    match.where = where + ", image " + std::to_string(i);
    std::vector<std::string> texts = differences(match, thresholds);
    const std::string wanted = fields_of(expected[i]);
    const std::string had = fields_of(found[i]);
    if (wanted != had) texts.push_back("the fields " + wanted + " expected, " + had + " found");
    if (!texts.empty()) comparison.failures.push_back({match.where + ": " + joined(texts, "; "), severity_of(match)});
    comparison.pictures.push_back(std::move(match));
  }
}

/// float32 does not represent all integers above this, so such integers are not rounded results but timestamps, hashes
/// or keys. For them, even a relatively small difference counts.
constexpr int64_t kLargestRounded = int64_t{1} << 24;

bool differ_beyond_rounding(const at::Tensor& expected, const at::Tensor& found) {
  if (!at::isIntegralType(expected.scalar_type(), /*includeBool=*/false)) return false;
  const at::Tensor a = expected.detach().cpu().to(at::kLong);
  const at::Tensor b = found.detach().cpu().to(at::kLong);
  const auto is_large = [](const at::Tensor& x) { return at::logical_or(x > kLargestRounded, x < -kLargestRounded); };
  return at::logical_and(at::logical_or(is_large(a), is_large(b)), a != b).any().item<bool>();
}

/// Returns the largest error of the fields of detections [rows * 6]: that of boxes and scores relative to their own
/// largest value, since a score is small beside a coordinate, and the largest difference of labels.
double error_by_field(const at::Tensor& expected, const at::Tensor& found) {
  const at::Tensor rows = expected.view({-1, 6});
  const at::Tensor differences = (rows - found.view({-1, 6})).abs();
  double error = differences.select(1, 5).max().item<double>();
  for (const auto& [first, count] : {std::pair<int64_t, int64_t>{0, 4}, {4, 1}}) {
    const double scale = rows.narrow(1, first, count).abs().max().item<double>();
    const double difference = differences.narrow(1, first, count).max().item<double>();
    error = std::max(error, scale != 0 ? difference / scale : difference);
  }
  return error;
}

}  // namespace

OutputError output_error(const std::string& name, const at::Tensor& expected, const at::Tensor& found) {
  const OutputError not_comparable{name, std::numeric_limits<double>::infinity(), 0};
  if (expected.sizes() != found.sizes() || expected.scalar_type() != found.scalar_type()) return not_comparable;
  if (expected.numel() == 0) return {name, 0, 1};
  if (expected.layout() != found.layout()) return not_comparable;
  if (expected.layout() != at::kStrided) return output_error(name, expected.to_dense(), found.to_dense());
  if (expected.is_complex()) {
    return output_error(name, at::view_as_real(expected.resolve_conj()), at::view_as_real(found.resolve_conj()));
  }
  if (differ_beyond_rounding(expected, found)) return not_comparable;
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
  const double error = scale != 0 ? difference / scale : difference;
  return {name, holds_detections(expected) ? std::max(error, error_by_field(a, b)) : error,
          norms != 0 ? a.dot(b).item<double>() / norms : 1};
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
    compare_leaves(comparison, expected, found, thresholds, where);
  }
  return comparison;
}

}  // namespace hybrid_rt
