#pragma once

#include <torch/script.h>

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "hybrid_rt/bundle.h"

// The golden sample of a bundle: an input, and what the detector found on it before it was converted. A service can
// run it when it starts, on the machine and with the engine that it will use.

namespace hybrid_rt {

/// What counts as equal; a bundle brings its own. hybrid_rt/thresholds.py says what each means.
struct Thresholds {
  double iou = 0.99;
  double score = 1e-3;
  double recall = 1;
  double relative_error = 1e-3;
  double mask_iou = 0.8;
  double keypoint_distance = 0.05;
  double keypoint_recall = 0.8;

  /// Throws Error(kBundle) that names what is missing.
  static Thresholds from_json(const std::string& json);
};

/// The boxes of one picture, the detector's (expected) against the hybrid's (found), matched one to one by label, IoU
/// and score. A box is at the cut if it has no partner, scores below one half and level with the other side's lowest:
/// the detector's own threshold cuts there. hybrid_rt/boxes.py explains each field.
struct BoxMatch {
  int64_t expected = 0;
  int64_t found = 0;
  int64_t matched = 0;
  double min_iou = 1;
  double max_score_difference = 0;
  int64_t expected_at_cut = 0;
  int64_t found_at_cut = 0;
  double max_box_drift = 0;  ///< pixels
  int64_t masks = 0;
  int64_t masks_differ = 0;
  std::optional<double> min_mask_iou;
  int64_t keypoints = 0;
  int64_t keypoints_differ = 0;
  std::optional<double> max_keypoint_distance;  ///< pixels
  std::optional<double> max_keypoint_score_difference;
  std::string where;
  std::string lost;  ///< the best box without a partner, in words

  /// Share of boxes with a partner or at the cut, the lower one of both ways; 1 if there are none.
  double recall() const;
  double masks_recall() const;
  double keypoint_recall() const;
};

/// One tensor of a result that holds no detections. An error without end stands for another shape or dtype.
struct OutputError {
  std::string output;
  double relative_error = 0;
  double cosine = 1;
};

struct Verification {
  std::string precision;
  Thresholds thresholds;
  std::vector<EngineChoice> engines;
  std::vector<BoxMatch> pictures;
  std::vector<OutputError> outputs;
  std::vector<std::string> failures;
  /// Whether convert() compared the hybrid with the detector on the sample before it saved the bundle.
  bool compared = false;

  bool passed() const { return failures.empty(); }
};

/// Loads a bundle and runs it on its golden sample. What differs is in `failures`. Throws Error: of load(), and
/// kBundle for a bundle without a golden sample; torch's errors if the module fails.
Verification verify(const std::string& path, const LoadOptions& options = {},
                    const std::optional<Thresholds>& thresholds = std::nullopt);

/// The same for a module that load(path) has made, on the device that it was loaded for.
Verification verify(const std::string& path, torch::jit::Module& module, c10::Device device = c10::kCPU,
                    const std::optional<Thresholds>& thresholds = std::nullopt);

/// The comparison itself: of two results of a detector, lists of detections (dicts of "boxes", "labels", "scores" and
/// perhaps "masks", "keypoints") or any nest of tensors.
Verification compare(const c10::IValue& expected, const c10::IValue& found, const Thresholds& thresholds,
                     const std::string& where);

/// As JSON: {"passed", "precision", "engines", "pictures", "tensors", "failures", "thresholds"}; a number that is not
/// finite is null. The fields of `hybrid-rt verify --json`.
std::string to_json(const Verification& verification);

}  // namespace hybrid_rt
