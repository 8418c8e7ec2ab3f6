#include "operators/box_tensors.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/exp.h>

#include <algorithm>
#include <array>

#include "operators/detection_operators.h"
#include "operators/one_thread.h"

namespace hybrid_rt::operators {
namespace {

template <typename T>
at::Tensor tensor_of(const std::vector<T>& values, at::ScalarType dtype) {
  at::Tensor tensor = at::empty({static_cast<int64_t>(values.size())}, dtype);
  std::copy(values.begin(), values.end(), tensor.mutable_data_ptr<T>());
  return tensor;
}

/// torch's own function, which rounds differently from std::exp.
at::Tensor exponentials(const std::vector<float>& values) {
  const OneThread one_thread(static_cast<int64_t>(values.size()));
  return at::exp(tensor_of(values, at::kFloat));
}

}  // namespace

at::Tensor tensor_of(const std::vector<BoxCorners>& boxes) {
  at::Tensor tensor = at::empty({static_cast<int64_t>(boxes.size()), 4}, at::kFloat);
  float* target = tensor.mutable_data_ptr<float>();
  for (const BoxCorners& box : boxes) target = std::copy(box.begin(), box.end(), target);
  return tensor;
}

void require_floats(const Refuse& refuse, const at::Tensor& tensor) {
  if (tensor.scalar_type() == at::kFloat && tensor.is_cpu()) return;
  refuse("tensors of dtype Float on the CPU", c10::str(describe(tensor), " on ", tensor.device()),
         "Convert them with .float().cpu().");
}

void require_size(const Refuse& refuse, const char* name, at::IntArrayRef size) {
  if (size.size() == 2 && size[0] >= 0 && size[1] >= 0) return;
  refuse(c10::str(name, " of height and width"), c10::str(size), "Pass two numbers of 0 or more.");
}

BoxDecoding decoding_of(const Refuse& refuse, at::ArrayRef<double> weights, double bbox_xform_clip) {
  if (weights.size() != 4) refuse("four weights", c10::str(weights.size()), "Check the box coder.");
  std::array<float, 4> rounded{};
  std::transform(weights.begin(), weights.end(), rounded.begin(), [](double each) { return static_cast<float>(each); });
  return {rounded, static_cast<float>(bbox_xform_clip)};
}

std::vector<BoxCorners> decoded(const BoxDecoding& decoding, at::IntArrayRef image_size) {
  const at::Tensor widths = exponentials(decoding.width_logarithms());
  const at::Tensor heights = exponentials(decoding.height_logarithms());
  return decoding.clipped(widths.const_data_ptr<float>(), heights.const_data_ptr<float>(),
                          static_cast<float>(image_size[0]), static_cast<float>(image_size[1]));
}

void LabelledBoxes::add(const BoxCorners& box, float score, int64_t label) {
  boxes_.push_back(box);
  scores_.push_back(score);
  labels_.push_back(label);
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> LabelledBoxes::best(double nms_thresh, int64_t most) const {
  const at::Tensor boxes = tensor_of(boxes_);
  const at::Tensor scores = tensor_of(scores_, at::kFloat);
  const at::Tensor labels = tensor_of(labels_, at::kLong);
  const at::Tensor kept = batched_nms(boxes, scores, labels, nms_thresh);
  const at::Tensor first = kept.narrow(0, 0, std::min(most, kept.size(0)));
  return {boxes.index_select(0, first), scores.index_select(0, first), labels.index_select(0, first)};
}

}  // namespace hybrid_rt::operators
