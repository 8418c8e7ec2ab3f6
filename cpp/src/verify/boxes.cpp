#include "verify/boxes.h"

#include <torch/types.h>

#include <algorithm>
#include <cmath>
#include <cstdarg>
#include <cstdio>
#include <limits>
#include <utility>

#include "torchscript/value_tree.h"

namespace hybrid_rt {
namespace {

/// Scores that differ by at most this are about equal.
constexpr double kCut = 1e-3;
/// Upper limit of detectors' thresholds.
constexpr double kMaxCut = 0.5;
/// torchvision's masks are probabilities. A pixel belongs to the object if its probability is at least this.
constexpr double kMaskCut = 0.5;
/// Number of pixels of a mask that may differ, whatever its size.
constexpr int64_t kMaskPixels = 2;
/// Number of pixels by which a keypoint may be off, whatever the size of its box.
constexpr double kKeypointPixels = 2;

/// Boxes with no coordinate above this are in 0..1. They have no pixels, so a thousandth of the image counts as one.
constexpr double kRelativeCoordinates = 2;
constexpr double kRelativePixel = 1e-3;

constexpr double kInfinity = std::numeric_limits<double>::infinity();

__attribute__((format(printf, 1, 2))) std::string formatted(const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  va_list again;
  va_copy(again, arguments);
  std::string text(static_cast<size_t>(std::max(0, std::vsnprintf(nullptr, 0, format, arguments))), '\0');
  std::vsnprintf(text.data(), text.size() + 1, format, again);
  va_end(again);
  va_end(arguments);
  return text;
}

bool has(const DetectionFields& detections, const char* name) {
  const auto field = detections.find(name);
  return field != detections.end() && field->second.defined();
}

double share(int64_t part, int64_t whole) {
  return whole == 0 ? 1 : static_cast<double>(part) / static_cast<double>(whole);
}

std::vector<double> values_of(const at::Tensor& tensor) {
  const at::Tensor doubles = tensor.to(at::kDouble).contiguous();
  const double* data = doubles.const_data_ptr<double>();
  return {data, data + doubles.numel()};
}

at::Tensor areas_of(const at::Tensor& boxes) {
  return (boxes.slice(-1, 2) - boxes.slice(-1, 0, 2)).clamp_min(0).prod(-1);
}

/// Returns the intersection over union of boxes [..., 4], with broadcasting.
at::Tensor iou_of(const at::Tensor& a, const at::Tensor& b) {
  const at::Tensor top_left = at::maximum(a.slice(-1, 0, 2), b.slice(-1, 0, 2));
  const at::Tensor bottom_right = at::minimum(a.slice(-1, 2), b.slice(-1, 2));
  const at::Tensor intersection = (bottom_right - top_left).clamp_min(0).prod(-1);
  const at::Tensor united = areas_of(a) + areas_of(b) - intersection;
  const at::Tensor equal = (a == b).all(-1);
  return at::where(equal, at::ones_like(united), intersection / united.clamp_min(1e-12));
}

/// Returns |a - b|, or 0 if both are the same infinity or NaN.
double distance_of(double a, double b) {
  if (a == b || (std::isnan(a) && std::isnan(b))) return 0;
  return std::abs(a - b);
}

at::Tensor distances_of(const at::Tensor& a, const at::Tensor& b) {
  const at::Tensor equal = at::logical_or(a == b, at::logical_and(a.isnan(), b.isnan()));
  return at::where(equal, 0.0, (a - b).abs());
}

double pixel_of(const at::Tensor& boxes) {
  if (boxes.numel() == 0) return 1;
  return boxes.abs().max().item<double>() <= kRelativeCoordinates ? kRelativePixel : 1;
}

/// Returns the overlap that boxes [..., 4] are matched by, with broadcasting: their IoU. If a side of either box is
/// shorter than a pixel, the IoU only reflects rounding errors; then the distances of their edges count, relative to
/// the span of both boxes along that axis, at least one pixel. So a line is judged like a box of one pixel.
at::Tensor overlap_of(const at::Tensor& a, const at::Tensor& b) {
  const at::Tensor iou = iou_of(a, b);
  const double pixel = pixel_of(a);
  const at::Tensor sides = at::minimum(a.slice(-1, 2) - a.slice(-1, 0, 2), b.slice(-1, 2) - b.slice(-1, 0, 2));
  const at::Tensor is_thin = (sides < pixel).any(-1);
  const at::Tensor off =
      distances_of(a.slice(-1, 0, 2), b.slice(-1, 0, 2)) + distances_of(a.slice(-1, 2), b.slice(-1, 2));
  const at::Tensor span =
      at::maximum(a.slice(-1, 2), b.slice(-1, 2)) - at::minimum(a.slice(-1, 0, 2), b.slice(-1, 0, 2));
  const at::Tensor by_edges = (1 - off / span.clamp_min(pixel)).clamp_min(0).prod(-1);
  const at::Tensor same = (distances_of(a, b) == 0).all(-1);
  const at::Tensor overlap = at::where(is_thin, at::maximum(iou, by_edges.nan_to_num(0)), iou);
  return at::where(same, 1.0, overlap);
}

BoxPairs pairs_of(const at::Tensor& overlap, const at::Tensor& allowed) {
  const auto ious = overlap.accessor<double, 2>();
  const auto may = allowed.accessor<bool, 2>();
  std::vector<bool> taken(static_cast<size_t>(overlap.size(1)));
  BoxPairs pairs;
  for (int64_t i = 0; i < overlap.size(0); ++i) {
    int64_t best = -1;
    for (int64_t j = 0; j < overlap.size(1); ++j) {
      if (may[i][j] && !taken[static_cast<size_t>(j)] && (best < 0 || ious[i][j] > ious[i][best])) best = j;
    }
    if (best < 0) continue;
    taken[static_cast<size_t>(best)] = true;
    pairs.emplace_back(i, best);
  }
  return pairs;
}

struct ComparedPairs {
  at::Tensor overlap;     // [n, m]
  at::Tensor difference;  // of the scores, [n, m]
  BoxPairs pairs;
};

ComparedPairs compared_pairs(const DetectionFields& expected, const DetectionFields& found,
                             const Thresholds& thresholds) {
  const at::Tensor overlap =
      overlap_of(expected.at("boxes").to(at::kDouble).unsqueeze(1), found.at("boxes").to(at::kDouble).unsqueeze(0));
  const at::Tensor difference =
      distances_of(expected.at("scores").to(at::kDouble).unsqueeze(1), found.at("scores").to(at::kDouble).unsqueeze(0));
  const at::Tensor same_label = expected.at("labels").unsqueeze(1) == found.at("labels").unsqueeze(0);
  const at::Tensor allowed =
      at::logical_and(same_label, at::logical_and(overlap >= thresholds.iou, difference <= thresholds.score));
  return {overlap, difference, pairs_of(overlap, allowed)};
}

std::vector<int64_t> others_than(const std::vector<int64_t>& matched, int64_t count) {
  std::vector<int64_t> others;
  for (int64_t i = 0; i < count; ++i) {
    if (std::find(matched.begin(), matched.end(), i) == matched.end()) others.push_back(i);
  }
  return others;
}

/// Returns the unmatched boxes that are not at the cut: their score is high, or not about equal to the lowest of
/// `others`.
std::vector<int64_t> beyond_the_cut(const std::vector<double>& scores, const std::vector<int64_t>& unmatched,
                                    const std::vector<double>& others, double tolerance) {
  double lowest = others.empty() ? 1 : others[0];
  for (const double other : others) {
    if (!(lowest <= other)) lowest = std::isnan(lowest) ? lowest : other;  // a NaN is kept, and excuses no box
  }
  if (lowest >= kMaxCut) return unmatched;
  std::vector<int64_t> beyond;
  for (const int64_t i : unmatched) {
    if (!(std::abs(scores[static_cast<size_t>(i)] - lowest) <= tolerance)) beyond.push_back(i);
  }
  return beyond;
}

int64_t best_of(const std::vector<double>& scores, const std::vector<int64_t>& candidates) {
  int64_t best = -1;
  const auto key = [&](int64_t i) {
    const double score = scores[static_cast<size_t>(i)];
    return std::pair(!std::isnan(score), std::isnan(score) ? 0 : score);
  };
  for (const int64_t i : candidates) {
    if (best < 0 || key(i) > key(best)) best = i;
  }
  return best;
}

std::string box_text(const DetectionFields& detections, int64_t i, double score) {
  const std::vector<double> box = values_of(detections.at("boxes")[i]);
  return formatted("box of label %lld, score %.3f at (%.1f, %.1f, %.1f, %.1f)",
                   static_cast<long long>(detections.at("labels")[i].item<double>()), score, box[0], box[1], box[2],
                   box[3]);
}

std::string lost_text(const DetectionFields& expected, const std::vector<double>& expected_scores,
                      const std::vector<int64_t>& lost, const DetectionFields& found,
                      const std::vector<double>& found_scores, const std::vector<int64_t>& extra) {
  const int64_t i = best_of(expected_scores, lost);
  const int64_t j = best_of(found_scores, extra);
  const auto score = [](const std::vector<double>& scores, int64_t k) { return scores[static_cast<size_t>(k)]; };
  if (i >= 0 && (j < 0 || !(score(found_scores, j) > score(expected_scores, i)))) {
    return "the detector's " + box_text(expected, i, score(expected_scores, i)) + " has no match";
  }
  if (j < 0) return "";
  return "the hybrid's " + box_text(found, j, score(found_scores, j)) + " is not the detector's";
}

double drift(const at::Tensor& first, const at::Tensor& second) {
  const std::vector<double> a = values_of(first);
  const std::vector<double> b = values_of(second);
  double squared = 0;
  for (size_t corner = 0; corner < 4; corner += 2) {
    const double x = distance_of(a[corner], b[corner]);
    const double y = distance_of(a[corner + 1], b[corner + 1]);
    squared = std::max(squared, x * x + y * y);
  }
  return std::sqrt(squared);
}

void compare_masks(BoxMatch& match, const at::Tensor& expected, const at::Tensor& found, const BoxPairs& pairs,
                   double least_iou) {
  match.masks = static_cast<int64_t>(pairs.size());
  for (const auto& [i, j] : pairs) {
    const at::Tensor first = expected[i];
    const at::Tensor second = found[j];
    double iou = 0;
    int64_t pixels = std::max({first.numel(), second.numel(), kMaskPixels + 1});
    if (first.sizes() == second.sizes()) {
      const at::Tensor a = first >= kMaskCut;
      const at::Tensor b = second >= kMaskCut;
      iou = share(at::logical_and(a, b).sum().item<int64_t>(), at::logical_or(a, b).sum().item<int64_t>());
      pixels = at::logical_xor(a, b).sum().item<int64_t>();
    }
    match.min_mask_iou = std::min(match.min_mask_iou.value_or(iou), iou);
    if (iou < least_iou && pixels > kMaskPixels) ++match.masks_differ;
  }
}

void compare_keypoints(BoxMatch& match, const DetectionFields& expected, const DetectionFields& found,
                       const BoxPairs& pairs, const Thresholds& thresholds) {
  const bool has_scores = has(expected, "keypoints_scores") && has(found, "keypoints_scores");
  for (const auto& [i, j] : pairs) {
    const at::Tensor first = expected.at("keypoints")[i];
    const at::Tensor second = found.at("keypoints")[j];
    const int64_t count = first.size(0);
    match.keypoints += count;
    if (first.sizes() != second.sizes() || first.dim() != 2 || first.size(1) < 2) {
      match.keypoints_differ += count;
      match.max_keypoint_distance = kInfinity;
      continue;
    }
    const std::vector<double> box = values_of(expected.at("boxes")[i]);
    const double area = std::max(box[2] - box[0], 0.0) * std::max(box[3] - box[1], 0.0);
    const double size = std::isfinite(area) ? std::sqrt(area) : 0;
    const double allowed = std::max(thresholds.keypoint_distance * size, kKeypointPixels);
    const std::vector<double> a = values_of(first);
    const std::vector<double> b = values_of(second);
    const auto columns = static_cast<size_t>(first.size(1));
    for (size_t row = 0; row < a.size(); row += columns) {
      const double x = distance_of(a[row], b[row]);
      const double y = distance_of(a[row + 1], b[row + 1]);
      const double distance = std::sqrt(x * x + y * y);
      bool is_near = distance <= allowed;
      for (size_t k = row + 2; k < row + columns; ++k) is_near &= distance_of(a[k], b[k]) <= thresholds.score;
      if (!is_near) ++match.keypoints_differ;
      match.max_keypoint_distance =
          std::max(match.max_keypoint_distance.value_or(0), std::isnan(distance) ? kInfinity : distance);
    }
    if (!has_scores) continue;
    const at::Tensor scores = expected.at("keypoints_scores")[i];
    const at::Tensor other_scores = found.at("keypoints_scores")[j];
    if (scores.sizes() != other_scores.sizes()) continue;
    double worst = match.max_keypoint_score_difference.value_or(0);
    for (const double difference : values_of((scores.to(at::kDouble) - other_scores.to(at::kDouble)).abs())) {
      if (difference > worst) worst = difference;
    }
    match.max_keypoint_score_difference = worst;
  }
}

}  // namespace

double BoxMatch::recall_of_expected() const { return share(matched + expected_at_cut, expected); }

double BoxMatch::recall_of_found() const { return share(matched + found_at_cut, found); }

double BoxMatch::recall() const { return std::min(recall_of_expected(), recall_of_found()); }

double BoxMatch::masks_recall() const { return masks == 0 ? 1 : 1 - share(masks_differ, masks); }

double BoxMatch::keypoint_recall() const { return keypoints == 0 ? 1 : 1 - share(keypoints_differ, keypoints); }

std::optional<std::vector<DetectionFields>> detections_of(const c10::IValue& value) {
  if (!value.isList() && !value.isTuple()) return std::nullopt;
  std::vector<DetectionFields> images;
  for (const c10::IValue& entry : elements_of(value)) {
    if (!entry.isGenericDict()) return std::nullopt;
    DetectionFields image;
    for (const auto& field : entry.toGenericDict()) {
      if (!field.key().isString()) continue;
      const bool is_tensor = field.value().isTensor() && field.value().toTensor().defined();
      image[field.key().toStringRef()] = is_tensor ? field.value().toTensor().detach().cpu() : at::Tensor();
    }
    for (const char* name : {"boxes", "labels", "scores"}) {
      if (!has(image, name)) return std::nullopt;
    }
    const at::Tensor& boxes = image.at("boxes");
    if (boxes.dim() != 2 || boxes.size(1) != 4) return std::nullopt;
    for (const char* name : {"labels", "scores"}) {
      if (image.at(name).dim() != 1 || image.at(name).size(0) != boxes.size(0)) return std::nullopt;
    }
    images.push_back(std::move(image));
  }
  return images;
}

at::Tensor box_iou(const at::Tensor& first, const at::Tensor& second) {
  return iou_of(first.unsqueeze(1), second.unsqueeze(0));
}

std::optional<at::Tensor> overlap_by_row(const at::Tensor& expected, const at::Tensor& found) {
  const auto are_ordered = [](const at::Tensor& boxes) {
    return (boxes.slice(1, 2) >= boxes.slice(1, 0, 2)).all().item<bool>();
  };
  const auto corners = [](const at::Tensor& boxes) {
    const at::Tensor half = boxes.slice(1, 2) / 2;
    return at::cat({boxes.slice(1, 0, 2) - half, boxes.slice(1, 0, 2) + half}, 1);
  };
  if (are_ordered(expected)) return overlap_of(expected, found);
  if ((expected.slice(1, 2) >= 0).all().item<bool>()) return overlap_of(corners(expected), corners(found));
  return std::nullopt;
}

BoxPairs matching_boxes(const DetectionFields& expected, const DetectionFields& found, const Thresholds& thresholds) {
  return compared_pairs(expected, found, thresholds).pairs;
}

BoxMatch match_boxes(const DetectionFields& expected, const DetectionFields& found, const Thresholds& thresholds) {
  const auto [overlap, difference, pairs] = compared_pairs(expected, found, thresholds);
  BoxMatch match;
  match.expected = overlap.size(0);
  match.found = overlap.size(1);
  match.matched = static_cast<int64_t>(pairs.size());
  std::vector<int64_t> left;
  std::vector<int64_t> right;
  for (const auto& [i, j] : pairs) {
    left.push_back(i);
    right.push_back(j);
    match.min_iou = std::min(match.min_iou, overlap[i][j].item<double>());
    match.max_score_difference = std::max(match.max_score_difference, difference[i][j].item<double>());
    match.max_box_drift = std::max(match.max_box_drift, drift(expected.at("boxes")[i], found.at("boxes")[j]));
  }
  left = others_than(left, match.expected);
  right = others_than(right, match.found);
  const std::vector<double> scores = values_of(expected.at("scores"));
  const std::vector<double> found_scores = values_of(found.at("scores"));
  const double tolerance = std::min(thresholds.score, kCut);
  const std::vector<int64_t> lost = beyond_the_cut(scores, left, found_scores, tolerance);
  const std::vector<int64_t> extra = beyond_the_cut(found_scores, right, scores, tolerance);
  match.expected_at_cut = static_cast<int64_t>(left.size() - lost.size());
  match.found_at_cut = static_cast<int64_t>(right.size() - extra.size());
  match.lost = lost_text(expected, scores, lost, found, found_scores, extra);
  if (has(expected, "masks") && has(found, "masks")) {
    compare_masks(match, expected.at("masks"), found.at("masks"), pairs, thresholds.mask_iou);
  }
  if (has(expected, "keypoints") && has(found, "keypoints")) {
    compare_keypoints(match, expected, found, pairs, thresholds);
  }
  return match;
}

std::vector<std::string> differences(const BoxMatch& match, const Thresholds& thresholds) {
  const auto count = [](int64_t value) { return static_cast<long long>(value); };
  std::vector<std::string> found;
  if (match.recall() < thresholds.recall) {
    found.push_back(formatted("%lld of %lld boxes matched among %lld (same label, IoU >= %g, score within %g)",
                              count(match.matched), count(match.expected), count(match.found), thresholds.iou,
                              thresholds.score) +
                    (match.lost.empty() ? "" : "; " + match.lost));
  }
  if (match.masks_recall() < thresholds.recall) {
    found.push_back(formatted("%lld of %lld masks differ (IoU %.3f at worst, %g wanted)", count(match.masks_differ),
                              count(match.masks), match.min_mask_iou.value_or(0), thresholds.mask_iou));
  }
  if (match.keypoint_recall() < thresholds.keypoint_recall) {
    found.push_back(formatted("%lld of %lld keypoints are too far off (%.1f pixels at worst; %g of the box wanted)",
                              count(match.keypoints_differ), count(match.keypoints),
                              match.max_keypoint_distance.value_or(0), thresholds.keypoint_distance));
  }
  return found;
}

}  // namespace hybrid_rt
