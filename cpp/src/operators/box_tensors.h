#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/ArrayRef.h>

#include <cstdint>
#include <tuple>
#include <vector>

#include "operators/box_decoding.h"
#include "operators/refusal.h"

// What the operators of known_parts.h share.

namespace hybrid_rt::operators {

/// Refuses what is not float32 on the CPU.
void require_floats(const Refuse& refuse, const at::Tensor& tensor);

/// Refuses what is not (height, width). `name`: of the argument.
void require_size(const Refuse& refuse, const char* name, at::IntArrayRef size);

/// Refuses other than four weights.
BoxDecoding decoding_of(const Refuse& refuse, at::ArrayRef<double> weights, double bbox_xform_clip);

/// The decoded boxes within an image (height, width).
std::vector<BoxCorners> decoded(const BoxDecoding& decoding, at::IntArrayRef image_size);

/// Boxes with scores and classes, or levels.
class LabelledBoxes {
 public:
  void add(const BoxCorners& box, float score, int64_t label);
  /// The `most` best of those that non-maximum suppression within the labels leaves: boxes [K, 4], scores and labels.
  std::tuple<at::Tensor, at::Tensor, at::Tensor> best(double nms_thresh, int64_t most) const;

 private:
  std::vector<BoxCorners> boxes_;
  std::vector<float> scores_;
  std::vector<int64_t> labels_;
};

}  // namespace hybrid_rt::operators
