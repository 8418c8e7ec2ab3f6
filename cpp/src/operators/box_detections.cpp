#include <cstdint>
#include <tuple>
#include <vector>

#include "operators/box_tensors.h"
#include "operators/known_parts.h"

namespace hybrid_rt::operators {
namespace {

constexpr Refuse kRefuseDetections{"box_detections"};
constexpr float kLeastSide = 1e-2F;  // minimum side of a box in pixels, as in torchvision

void check_box_detections(const at::Tensor& scores, const at::Tensor& codes, const at::Tensor& proposals) {
  for (const at::Tensor* const tensor : {&scores, &codes, &proposals}) require_floats(kRefuseDetections, *tensor);
  if (scores.dim() != 2 || scores.size(1) < 1) {
    kRefuseDetections("scores of shape [R, C]", describe(scores), "Pass one row per proposal of one image.");
  }
  if (codes.dim() != 2 || codes.size(0) != scores.size(0) || codes.size(1) != 4 * scores.size(1)) {
    kRefuseDetections(c10::str("codes of shape [", scores.size(0), ", ", 4 * scores.size(1), "]"), describe(codes),
                      "Check the code that computes them.");
  }
  if (proposals.dim() != 2 || proposals.size(0) != scores.size(0) || proposals.size(1) != 4) {
    kRefuseDetections(c10::str("proposals of shape [", scores.size(0), ", 4]"), describe(proposals),
                      "Check the code that computes them.");
  }
}

}  // namespace

std::tuple<at::Tensor, at::Tensor, at::Tensor> box_detections(const at::Tensor& scores, const at::Tensor& codes,
                                                              const at::Tensor& proposals, at::IntArrayRef image_size,
                                                              double score_thresh, double nms_thresh,
                                                              int64_t detections_per_img, at::ArrayRef<double> weights,
                                                              double bbox_xform_clip) {
  check_box_detections(scores, codes, proposals);
  require_size(kRefuseDetections, "image_size", image_size);
  if (detections_per_img < 0) {
    kRefuseDetections("detections_per_img of 0 or more", c10::str(detections_per_img), "Check the detector's options.");
  }
  const at::Tensor score_rows = scores.contiguous();
  const at::Tensor code_rows = codes.contiguous();
  const at::Tensor box_rows = proposals.contiguous();
  const float* const score = score_rows.const_data_ptr<float>();
  const float* const code = code_rows.const_data_ptr<float>();
  const float* const box = box_rows.const_data_ptr<float>();
  const int64_t classes = scores.size(1);
  const auto threshold = static_cast<float>(score_thresh);
  BoxDecoding decoding = decoding_of(kRefuseDetections, weights, bbox_xform_clip);
  std::vector<int64_t> candidates;  // row * classes + label
  for (int64_t row = 0; row < scores.size(0); ++row) {
    const float* const own = box + 4 * row;
    for (int64_t i = row * classes + 1; i < (row + 1) * classes; ++i) {
      if (!(score[i] > threshold)) continue;
      candidates.push_back(i);
      decoding.add({own[0], own[1], own[2], own[3]}, {code[4 * i], code[4 * i + 1], code[4 * i + 2], code[4 * i + 3]});
    }
  }
  const std::vector<BoxCorners> boxes = decoded(decoding, image_size);
  LabelledBoxes passing;
  for (size_t i = 0; i < boxes.size(); ++i) {
    if (is_large(boxes[i], kLeastSide)) passing.add(boxes[i], score[candidates[i]], candidates[i] % classes);
  }
  return passing.best(nms_thresh, detections_per_img);
}

}  // namespace hybrid_rt::operators
