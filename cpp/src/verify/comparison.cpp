#include "verify/comparison.h"

#include <torch/types.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <limits>
#include <map>
#include <set>
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

/// Returns the leaves of a result, or of the part at `path`: tensors and plain values, each named by the keys and
/// indices that lead to it. Throws Error(kInput) for any other leaf.
Leaves leaves_of(const c10::IValue& value, const std::string& path) {
  Leaves found;
  visit_leaves(value, path, [&found](const c10::IValue& leaf, const std::string& name) {
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

/// Returns true for a limit that allows only for rounding in float32. Values that are whole then have to be equal.
bool allows_only_rounding(double limit) { return limit <= Thresholds{}.relative_error; }

/// Returns the number of rows that may differ. A count that is whole but for rounding is whole.
int64_t spared_of(int64_t count, double recall) {
  return static_cast<int64_t>(std::floor((1 - recall) * static_cast<double>(count) + 1e-9));
}

/// Returns 0 if everything matches, 3 if nothing does.
double severity_of(const BoxMatch& match) {
  return (1 - match.recall()) + (1 - match.masks_recall()) + (1 - match.keypoint_recall());
}

double severity_of(const OutputError& error) {
  return std::isnan(error.relative_error) ? std::numeric_limits<double>::infinity() : error.relative_error;
}

/// Tensors of both sides by name. Rows of the hybrid's detections may have moved, see near_ties.h.
struct Sides {
  NamedTensors expected;
  NamedTensors found;
};

/// Returns the error of each tensor, and moves the hybrid's rows if they differ.
std::map<std::string, OutputError> output_errors(Sides& sides, double limit) {
  std::map<std::string, OutputError> errors;
  bool are_equal = true;
  for (const auto& [name, tensor] : sides.expected) {
    errors[name] = output_error(name, tensor, sides.found.at(name), limit);
    are_equal = are_equal && errors[name].relative_error <= limit;
  }
  if (are_equal) return errors;
  for (auto& [name, tensor] : in_expected_order(sides.expected, sides.found, limit)) {
    errors[name] = output_error(name, sides.expected.at(name), tensor, limit);
    sides.found[name] = tensor;
  }
  return errors;
}

/// Returns for each row of detections whether its labels are equal and its box overlaps enough, or differs by no more
/// than rounding. Fields that are neither labels nor boxes are left out.
at::Tensor rows_that_agree(const Group& group, const Sides& sides, double least_iou) {
  std::vector<std::pair<at::Tensor, at::Tensor>> boxes;
  at::Tensor agree = torch::ones({1}, at::kBool);
  for (const std::string& name : group.names) {
    const at::Tensor a = as_rows(sides.expected.at(name), group.sizes).flatten(0, 1);
    const at::Tensor b = as_rows(sides.found.at(name), group.sizes).flatten(0, 1);
    const bool holds_all = holds_detections(sides.expected.at(name));
    if (holds_all || a.size(1) == kBoxColumns)
      boxes.emplace_back(a.slice(1, 0, kBoxColumns), b.slice(1, 0, kBoxColumns));
    const at::Tensor label = holds_all ? a.slice(1, kBoxColumns + 1) : a;
    const bool is_label = name != group.scores || holds_all;
    if (is_label && label.size(1) == 1 && are_whole(label, 1).item<bool>()) {
      agree = at::logical_and(agree, (label == (holds_all ? b.slice(1, kBoxColumns + 1) : b)).all(1));
    }
  }
  if (boxes.size() != 1) return agree;
  const auto& [a, b] = boxes.front();
  const auto overlap = overlap_by_row(a, b);
  if (!overlap) return agree;
  const at::Tensor is_rounding = ((a - b).abs() <= Thresholds{}.relative_error * a.abs().max()).all(1);
  return at::logical_and(agree, at::logical_or(is_rounding, *overlap >= least_iou));
}

/// Judges rows of detections in a lower precision, where an error relative to the largest coordinate, or label, may be
/// that of another box, or label.
void compare_rows(Comparison& comparison, const Sides& sides, const Thresholds& thresholds, const std::string& where) {
  for (const Group& group : groups_in(sides.expected)) {
    const bool are_alike = std::all_of(group.names.begin(), group.names.end(), [&](const std::string& name) {
      const at::Tensor& found = sides.found.at(name);
      return is_usable(found) && found.sizes() == sides.expected.at(name).sizes();
    });
    if (!are_alike) continue;
    const at::Tensor agree = rows_that_agree(group, sides, thresholds.iou);
    const int64_t differ = agree.numel() - agree.sum().item<int64_t>();
    if (differ <= spared_of(agree.numel(), thresholds.recall)) continue;
    char text[128];
    std::snprintf(text, sizeof text, ": %lld of %lld rows differ (same label, IoU >= %g)",
                  static_cast<long long>(differ), static_cast<long long>(agree.numel()), thresholds.iou);
    comparison.failures.push_back({where + ", output '" + group.names.front() + "'" + text,
                                   static_cast<double>(differ) / static_cast<double>(agree.numel())});
  }
}

void compare_leaves(Comparison& comparison, const c10::IValue& expected, const c10::IValue& found,
                    const Thresholds& thresholds, const std::string& where, const std::string& path) {
  const auto fail = [&](const std::string& text, std::optional<double> severity = std::nullopt) {
    comparison.failures.push_back({where + text, severity});
  };
  const Leaves wanted = leaves_of(expected, path);
  const Leaves had = leaves_of(found, path);
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
  Sides sides;
  for (const auto& [name, leaf] : wanted) {
    const c10::IValue& other = by_name.at(name);
    if (!is_tensor(leaf) || !is_tensor(other)) continue;
    sides.expected[name] = leaf.toTensor();
    sides.found[name] = other.toTensor();
  }
  const std::map<std::string, OutputError> errors = output_errors(sides, thresholds.relative_error);
  if (!allows_only_rounding(thresholds.relative_error)) compare_rows(comparison, sides, thresholds, where);
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

/// Fields of detections that match_boxes() compares.
const std::set<std::string> kBoxFields{"boxes", "labels", "scores", "masks", "keypoints", "keypoints_scores"};

/// Returns the other fields of an image, such as embeddings or a track's number, by name.
std::map<std::string, c10::IValue> further_fields(const c10::IValue& image) {
  std::map<std::string, c10::IValue> fields;
  for (const auto& field : image.toGenericDict()) {
    if (!field.key().isString()) continue;
    const std::string& name = field.key().toStringRef();
    if (kBoxFields.count(name) == 0) fields.emplace(name, field.value());
  }
  return fields;
}

at::Tensor rows_at(const at::Tensor& tensor, const std::vector<int64_t>& indices) {
  return tensor.detach().cpu().index_select(0, at::tensor(indices, at::kLong));
}

/// Returns the error of a field with one row per box, of the boxes that form pairs. As many rows may differ as boxes
/// may be lost.
OutputError error_of_rows(const std::string& name, const at::Tensor& expected, const at::Tensor& found,
                          const BoxPairs& pairs, const Thresholds& thresholds) {
  std::vector<int64_t> ours;
  std::vector<int64_t> theirs;
  for (const auto& [i, j] : pairs) {
    ours.push_back(i);
    theirs.push_back(j);
  }
  at::Tensor a = rows_at(expected, ours);
  at::Tensor b = rows_at(found, theirs);
  const int64_t spared = spared_of(static_cast<int64_t>(pairs.size()), thresholds.recall);
  if (spared > 0 && a.sizes() == b.sizes() && a.numel() > 0) {
    const at::Tensor x = a.to(at::kDouble).reshape({a.size(0), -1});
    const at::Tensor y = b.to(at::kDouble).reshape({b.size(0), -1});
    const at::Tensor equal = at::logical_or(x == y, at::logical_and(x.isnan(), y.isnan()));
    const at::Tensor off = std::get<0>(at::where(equal, 0.0, (x - y).abs()).nan_to_num(1e300).max(1));
    const at::Tensor kept = off.argsort().slice(0, 0, a.size(0) - spared);
    a = a.index_select(0, kept);
    b = b.index_select(0, kept);
  }
  return output_error(name, a, b, thresholds.relative_error);
}

/// Compares the fields that are not those of the boxes: rows of the pairs with each other, other values as they are.
void compare_further_fields(Comparison& comparison, const c10::IValue& expected, const c10::IValue& found,
                            const std::pair<DetectionFields, DetectionFields>& boxes, const Thresholds& thresholds,
                            const std::string& where, const std::string& path) {
  const std::map<std::string, c10::IValue> had = further_fields(found);
  std::optional<BoxPairs> pairs;
  const auto has_rows = [](const c10::IValue& field, const DetectionFields& image) {
    return is_tensor(field) && field.toTensor().layout() == at::kStrided && field.toTensor().dim() > 0 &&
           field.toTensor().size(0) == image.at("scores").size(0);
  };
  for (const auto& [field, value] : further_fields(expected)) {
    const auto other = had.find(field);
    if (other == had.end()) continue;  // compare_detections() compares the names
    const std::string name = path + "." + field;
    if (!has_rows(value, boxes.first) || !has_rows(other->second, boxes.second)) {
      compare_leaves(comparison, value, other->second, thresholds, where, name);
      continue;
    }
    if (!pairs) pairs = matching_boxes(boxes.first, boxes.second, thresholds);
    const OutputError error = error_of_rows(name, value.toTensor(), other->second.toTensor(), *pairs, thresholds);
    comparison.outputs.push_back(error);
    if (error.relative_error <= thresholds.relative_error) continue;
    comparison.failures.push_back(
        {where + ", output '" + name + "': " + error_text(error, thresholds), severity_of(error)});
  }
}

void compare_detections(Comparison& comparison, const c10::IValue& expected, const c10::IValue& found,
                        const Thresholds& thresholds, const std::string& where) {
  const std::vector<DetectionFields> boxes = *detections_of(expected);
  const std::vector<DetectionFields> found_boxes = *detections_of(found);
  if (boxes.size() != found_boxes.size()) {
    comparison.failures.push_back({where + ": detections of " + std::to_string(boxes.size()) + " images expected, of " +
                                       std::to_string(found_boxes.size()) + " found",
                                   std::nullopt});
    return;
  }
  const std::vector<c10::IValue> images = elements_of(expected);
  const std::vector<c10::IValue> found_images = elements_of(found);
  for (size_t i = 0; i < boxes.size(); ++i) {
    BoxMatch match = match_boxes(boxes[i], found_boxes[i], thresholds);
    match.where = where + ", image " + std::to_string(i);
    const std::vector<std::string> texts = differences(match, thresholds);
    if (!texts.empty()) {
      comparison.failures.push_back(
          {match.where + ": " + joined(texts, "; "), severity_of(match), /*is_of_boxes=*/true});
    }
    const std::string wanted = fields_of(boxes[i]);
    const std::string had = fields_of(found_boxes[i]);
    if (wanted != had) {
      comparison.failures.push_back(
          {match.where + ": the fields " + wanted + " expected, " + had + " found", std::nullopt});
    }
    compare_further_fields(comparison, images[i], found_images[i], {boxes[i], found_boxes[i]}, thresholds, where,
                           "output." + std::to_string(i));
    comparison.pictures.push_back(std::move(match));
  }
}

/// float32 does not represent all integers above this, so such integers are not rounded results but timestamps, hashes
/// or keys. For them, even a relatively small difference counts.
constexpr int64_t kLargestRounded = int64_t{1} << 24;

/// Larger floats may be whole because float32 has no digits left for their fraction.
constexpr double kLargestLabel = 1 << 20;
/// Number of columns, at least, in [columns, n]; fewer would be rows.
constexpr int64_t kFewestColumns = 5;
/// Columns of coordinates, labels and coefficients beside scores. A map with a dark border has more.
constexpr int64_t kMostOtherColumns = 64;
/// A tensor whose values are all at most this has no column that is much smaller than another.
constexpr double kLargestScores = 2;

bool differ_beyond_rounding(const at::Tensor& expected, const at::Tensor& found) {
  if (!at::isIntegralType(expected.scalar_type(), /*includeBool=*/false)) return false;
  const at::Tensor a = expected.detach().cpu().to(at::kLong);
  const at::Tensor b = found.detach().cpu().to(at::kLong);
  const auto is_large = [](const at::Tensor& x) { return at::logical_or(x > kLargestRounded, x < -kLargestRounded); };
  return at::logical_and(at::logical_or(is_large(a), is_large(b)), a != b).any().item<bool>();
}

double largest(const at::Tensor& tensor) { return tensor.numel() == 0 ? 0 : tensor.abs().max().item<double>(); }

/// Returns the largest error of the fields of detections [rows * 6]: that of boxes and scores relative to their own
/// largest value, since a score is small beside a coordinate, and the largest difference of labels.
double error_by_field(const at::Tensor& expected, const at::Tensor& found) {
  const at::Tensor rows = expected.view({-1, 6});
  const at::Tensor differences = (rows - found.view({-1, 6})).abs();
  double error = largest(differences.select(1, 5));
  for (const auto& [first, count] : {std::pair<int64_t, int64_t>{0, 4}, {4, 1}}) {
    const double scale = largest(rows.narrow(1, first, count));
    const double difference = largest(differences.narrow(1, first, count));
    error = std::max(error, scale != 0 ? difference / scale : difference);
  }
  return error;
}

/// Returns the largest difference of the columns [count, values] that hold labels or the like: whole on both sides.
double error_of_whole(const at::Tensor& expected, const at::Tensor& found) {
  const auto are_labels = [](const at::Tensor& columns) {
    return at::logical_and(columns == columns.round(), columns.abs() <= kLargestLabel).all(1);
  };
  const at::Tensor chosen = at::logical_and(are_labels(expected), are_labels(found));
  return largest((expected - found).abs().masked_select(chosen.unsqueeze(1)));
}

/// Returns the largest difference of the columns [count, values] of scores beside larger ones, such as coordinates.
double error_of_scores(const at::Tensor& expected, const at::Tensor& found) {
  const at::Tensor are_scores = at::logical_and(expected >= 0, expected <= 1).all(1);
  const int64_t others = expected.size(0) - are_scores.sum().item<int64_t>();
  if (others > kMostOtherColumns || largest(expected) <= kLargestScores) return 0;
  return largest((expected - found).abs().masked_select(are_scores.unsqueeze(1)));
}

/// Returns the largest error of columns that are not judged by the tensor's largest value. Columns are those of the
/// last axis, or [b, columns, n]. Four of them have only coordinates, which a detector may round.
double error_by_columns(const at::Tensor& expected, const at::Tensor& found, at::IntArrayRef sizes, double limit) {
  const auto dim = static_cast<int64_t>(sizes.size());
  if (dim > 3) return 0;
  const bool must_be_equal = allows_only_rounding(limit);
  if (dim < 2) return must_be_equal ? error_of_whole(expected.view({1, -1}), found.view({1, -1})) : 0;
  const at::Tensor a = expected.view(sizes);
  const at::Tensor b = found.view(sizes);
  if (a.size(-1) == kBoxColumns || (dim == 3 && a.size(-2) == kBoxColumns)) return 0;
  double error = 0;
  for (const int64_t axis : {dim - 2, dim - 1}) {
    const at::Tensor x = a.movedim(axis, 0).reshape({a.size(axis), -1});
    const at::Tensor y = b.movedim(axis, 0).reshape({b.size(axis), -1});
    if (axis == dim - 1 || a.size(axis) >= kFewestColumns) error = std::max(error, error_of_scores(x, y));
    if (must_be_equal && (axis == dim - 1 || dim == 3)) error = std::max(error, error_of_whole(x, y));
  }
  return error;
}

}  // namespace

OutputError output_error(const std::string& name, const at::Tensor& expected, const at::Tensor& found, double limit) {
  const OutputError not_comparable{name, std::numeric_limits<double>::infinity(), 0};
  if (expected.sizes() != found.sizes() || expected.scalar_type() != found.scalar_type()) return not_comparable;
  if (expected.numel() == 0) return {name, 0, 1};
  if (expected.layout() != found.layout()) return not_comparable;
  if (expected.layout() != at::kStrided) return output_error(name, expected.to_dense(), found.to_dense(), limit);
  if (expected.is_complex()) {
    const auto parts = [](const at::Tensor& tensor) { return at::view_as_real(tensor.resolve_conj()).flatten(); };
    return output_error(name, parts(expected), parts(found), limit);
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
  const double scale = largest(a);
  const double difference = largest(a - b);
  const double norms = a.norm().item<double>() * b.norm().item<double>();
  const bool must_be_equal = !expected.is_floating_point() && allows_only_rounding(limit);
  double error = scale != 0 && !must_be_equal ? difference / scale : difference;
  if (expected.is_floating_point()) error = std::max(error, error_by_columns(a, b, expected.sizes(), limit));
  if (holds_detections(expected)) error = std::max(error, error_by_field(a, b));
  return {name, error, norms != 0 ? a.dot(b).item<double>() / norms : 1};
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
  if (detections_of(expected) && detections_of(found)) {
    compare_detections(comparison, expected, found, thresholds, where);
  } else {
    compare_leaves(comparison, expected, found, thresholds, where, "output");
  }
  return comparison;
}

}  // namespace hybrid_rt
