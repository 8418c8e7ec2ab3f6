#pragma once

#include <torch/script.h>

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "hybrid_rt/bundle.h"
#include "hybrid_rt/latency.h"
#include "hybrid_rt/thresholds.h"

// The golden sample of a bundle: an input, and the detector's result for it before the conversion. A service can run it
// when it starts, on the machine and with the engine that it will use.

namespace hybrid_rt {

/// Comparison of one image's boxes: the detector's (expected) and the hybrid's (found), matched one to one by label,
/// IoU and score. A box is at the cut if it has no match, and its score is below one half and about equal to the other
/// side's lowest: there, the detector's own threshold or box limit removes boxes, and rounding decides which ones. Such
/// boxes are counted separately, not as lost.
struct BoxMatch {
  int64_t expected = 0;                ///< number of the detector's boxes
  int64_t found = 0;                   ///< number of the hybrid's boxes
  int64_t matched = 0;                 ///< number of pairs
  double min_iou = 1;                  ///< lowest IoU of a pair
  double max_score_difference = 0;     ///< largest difference of a pair's scores
  int64_t expected_at_cut = 0;         ///< number of the detector's boxes at the cut
  int64_t found_at_cut = 0;            ///< number of the hybrid's boxes at the cut
  double max_box_drift = 0;            ///< in pixels: largest distance between the same corner of a pair's boxes
  int64_t masks = 0;                   ///< number of pairs that have masks
  int64_t masks_differ = 0;            ///< number of pairs whose masks do not agree
  std::optional<double> min_mask_iou;  ///< lowest IoU of a pair's masks
  int64_t keypoints = 0;               ///< number of keypoints of all pairs
  int64_t keypoints_differ = 0;        ///< number beyond the allowed distance
  std::optional<double> max_keypoint_distance;  ///< largest distance of two keypoints, in pixels
  /// Difference of "keypoints_scores". Reported, not judged, because its scale is the heat map's.
  std::optional<double> max_keypoint_score_difference;
  std::string where;  ///< the image, for messages
  std::string lost;   ///< description of the best box without a match that is not at the cut; empty if there is none

  /// Returns the fraction of the detector's boxes that have a partner or are at the cut; 1 if there are none.
  double recall_of_expected() const;
  /// Returns the fraction of the hybrid's boxes that have a partner or are at the cut; 1 if there are none.
  double recall_of_found() const;
  /// Returns the lower one of both.
  double recall() const;
  /// Returns the fraction of the pairs' masks that agree; 1 if there are none.
  double masks_recall() const;
  /// Returns the fraction of the pairs' keypoints that are near enough; 1 if there are none.
  double keypoint_recall() const;
};

/// Calls `visit(name, pointer to member)` for each field of BoxMatch, in the order of the JSON.
template <class Visit>
void visit_box_match_fields(const Visit& visit) {
  visit("expected", &BoxMatch::expected);
  visit("found", &BoxMatch::found);
  visit("matched", &BoxMatch::matched);
  visit("min_iou", &BoxMatch::min_iou);
  visit("max_score_difference", &BoxMatch::max_score_difference);
  visit("expected_at_cut", &BoxMatch::expected_at_cut);
  visit("found_at_cut", &BoxMatch::found_at_cut);
  visit("max_box_drift", &BoxMatch::max_box_drift);
  visit("masks", &BoxMatch::masks);
  visit("masks_differ", &BoxMatch::masks_differ);
  visit("min_mask_iou", &BoxMatch::min_mask_iou);
  visit("keypoints", &BoxMatch::keypoints);
  visit("keypoints_differ", &BoxMatch::keypoints_differ);
  visit("max_keypoint_distance", &BoxMatch::max_keypoint_distance);
  visit("max_keypoint_score_difference", &BoxMatch::max_keypoint_score_difference);
  visit("where", &BoxMatch::where);
  visit("lost", &BoxMatch::lost);
}

/// Difference of one output tensor that does not hold boxes, masks or keypoints of detections.
struct OutputError {
  std::string output;         ///< name of the output
  double relative_error = 0;  ///< infinite if the shape or dtype differs; the difference itself for whole numbers
  double cosine = 1;          ///< cosine of the angle between both tensors, flattened
};
/// Result of a comparison.
struct Verification {
  std::string precision;              ///< precision of the bundle
  Thresholds thresholds;              ///< limits that were used
  std::vector<EngineChoice> engines;  ///< how each engine ran
  std::vector<BoxMatch> pictures;     ///< comparison of the boxes, per image
  std::vector<OutputError> outputs;   ///< comparison of the tensors that are not boxes
  std::vector<std::string> failures;  ///< differences beyond the limits, for messages
  /// True if convert() compared the hybrid with the detector on the sample before it saved the bundle.
  bool compared = false;
  /// The check of the latency contract; absent if it was not requested.
  std::optional<LatencyCheck> latency{};

  /// Returns true if the result matches the detector's.
  bool matches() const { return failures.empty(); }
  /// Returns true if the result matches and, if it was checked, the latency contract holds.
  bool passed() const { return matches() && (!latency || latency->holds()); }
};

/// Loads a bundle and runs it on its golden sample. `failures` lists the differences. With `latency`, it also times
/// calls on this machine, with the contract's number of threads unless `options` names one, and compares them with the
/// bundle's latency contract. Throws Error: of load(), kBundle for a bundle without a golden sample, or without a
/// contract that was to be checked, kOption for a size that is not in it; torch's errors if the module fails.
Verification verify(const std::string& path, const LoadOptions& options = {},
                    const std::optional<Thresholds>& thresholds = std::nullopt,
                    const std::optional<LatencyOptions>& latency = std::nullopt);

/// Does the same for a module from load(path), on the device that it was loaded for. Times are those of as many threads
/// as torch uses in this thread and as the engines were loaded with.
Verification verify(const std::string& path, torch::jit::Module& module, c10::Device device = c10::kCPU,
                    const std::optional<Thresholds>& thresholds = std::nullopt,
                    const std::optional<LatencyOptions>& latency = std::nullopt);

/// Compares two results of a detector: lists of detections (dicts of "boxes", "labels", "scores" and optionally
/// "masks", "keypoints") or any nested tensors. `where` names the image in messages. Does not throw.
Verification compare(const c10::IValue& expected, const c10::IValue& found, const Thresholds& thresholds,
                     const std::string& where);

/// Converts to JSON: {"passed", "precision", "engines", "pictures", "tensors", "failures", "thresholds"}, and "latency"
/// if that was checked; a number that is not finite is null. The fields of `hybrid-rt verify --json`.
std::string to_json(const Verification& verification);

}  // namespace hybrid_rt
