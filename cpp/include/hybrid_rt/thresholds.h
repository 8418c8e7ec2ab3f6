#pragma once

#include <array>
#include <string>

namespace hybrid_rt {

/// Limits for equality. A bundle stores its own thresholds; the defaults are those of fp32, the strictest.
/// docs/precision-and-verification.md lists those of the other precisions and explains them.
struct Thresholds {
  double iou = 0.99;                ///< minimum intersection over union of matching boxes
  double score = 1e-3;              ///< largest difference of their scores
  double recall = 1;                ///< minimum fraction of boxes with a partner, both ways, and of masks that agree
  double relative_error = 1e-3;     ///< largest |difference| of a tensor, relative to its largest |value|
  double mask_iou = 0.97;           ///< minimum intersection over union of two masks, each cut at 0.5
  double keypoint_distance = 0.02;  ///< largest distance of two keypoints, relative to the box's sqrt(area)
  double keypoint_recall = 0.95;    ///< minimum fraction of keypoints within that distance

  /// Throws Error(kBundle) that names what is missing.
  static Thresholds from_json(const std::string& json);
};
/// One field of Thresholds, for code that handles all of them.
struct ThresholdField {
  const char* name;            ///< name in JSON and Python
  double Thresholds::* value;  ///< pointer to the member
};

/// Every field of Thresholds, in the order of the JSON. All code that reads, writes or binds thresholds uses it.
inline constexpr std::array kThresholdFields{
    ThresholdField{"iou", &Thresholds::iou},
    ThresholdField{"score", &Thresholds::score},
    ThresholdField{"recall", &Thresholds::recall},
    ThresholdField{"relative_error", &Thresholds::relative_error},
    ThresholdField{"mask_iou", &Thresholds::mask_iou},
    ThresholdField{"keypoint_distance", &Thresholds::keypoint_distance},
    ThresholdField{"keypoint_recall", &Thresholds::keypoint_recall},
};
static_assert(sizeof(Thresholds) == kThresholdFields.size() * sizeof(double), "a field is missing in the table");

}  // namespace hybrid_rt
