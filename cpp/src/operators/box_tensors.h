#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/ArrayRef.h>

#include <cstdint>
#include <tuple>
#include <vector>

#include "operators/box_decoding.h"
#include "operators/refusal.h"

// Code that the operators of known_parts.h share.

namespace hybrid_rt::operators {

/// Returns the boxes as a tensor [K, 4].
at::Tensor tensor_of(const std::vector<BoxCorners>& boxes);

/// Refuses any tensor that is not float32 on the CPU.
void require_floats(const Refuse& refuse, const at::Tensor& tensor);

/// Refuses a size that is not (height, width). `name` is the argument's name.
void require_size(const Refuse& refuse, const char* name, at::IntArrayRef size);

/// Returns an empty decoding. Refuses any number of weights other than four.
BoxDecoding decoding_of(const Refuse& refuse, at::ArrayRef<double> weights, double bbox_xform_clip);

/// Returns the decoded boxes, clipped to an image of (height, width).
std::vector<BoxCorners> decoded(const BoxDecoding& decoding, at::IntArrayRef image_size);

/// Boxes with scores and with labels, which are classes or levels.
class LabelledBoxes {
 public:
  void add(const BoxCorners& box, float score, int64_t label);
  /// Returns the `most` best boxes after non-maximum suppression within each label: boxes [K, 4], scores and labels.
  std::tuple<at::Tensor, at::Tensor, at::Tensor> best(double nms_thresh, int64_t most) const;

 private:
  std::vector<BoxCorners> boxes_;
  std::vector<float> scores_;
  std::vector<int64_t> labels_;
};

}  // namespace hybrid_rt::operators
