#include <ATen/TensorOperators.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/sigmoid.h>
#include <ATen/ops/topk.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <vector>

#include "operators/box_tensors.h"
#include "operators/detection_operators.h"
#include "operators/known_parts.h"

namespace hybrid_rt::operators {
namespace {

constexpr Refuse kRefuseProposals{"region_proposals"};

void check_level(const at::Tensor& objectness, const at::Tensor& deltas, const at::Tensor& cell_anchors,
                 int64_t image) {
  for (const at::Tensor* const tensor : {&objectness, &deltas, &cell_anchors})
    require_floats(kRefuseProposals, *tensor);
  if (objectness.dim() != 4 || image < 0 || image >= objectness.size(0)) {
    kRefuseProposals("objectness of shape [N, A, H, W] with an image " + std::to_string(image), describe(objectness),
                     "Pass the logits of the batch.");
  }
  const std::vector<int64_t> wanted{objectness.size(0), 4 * objectness.size(1), objectness.size(2), objectness.size(3)};
  if (deltas.sizes() != at::IntArrayRef(wanted)) {
    kRefuseProposals(c10::str("deltas of shape ", at::IntArrayRef(wanted)), describe(deltas),
                     "Check the code that computes them.");
  }
  if (cell_anchors.dim() != 2 || cell_anchors.size(0) != objectness.size(1) || cell_anchors.size(1) != 4) {
    kRefuseProposals(c10::str("cell_anchors of shape [", objectness.size(1), ", 4]"), describe(cell_anchors),
                     "Check the anchor generator's sizes and aspect ratios.");
  }
  if (objectness.size(2) == 0 || objectness.size(3) == 0) {
    kRefuseProposals("levels with pixels", describe(objectness), "Pass a larger image.");
  }
}

/// Candidates of all levels.
struct Candidates {
  BoxDecoding decoding;
  std::vector<at::Tensor> logits;
  std::vector<int64_t> levels;
};

/// Adds the best candidates of one level, in torch's order.
void add_level(const at::Tensor& objectness, const at::Tensor& deltas, const at::Tensor& cell_anchors, int64_t level,
               int64_t most, at::IntArrayRef padded_size, Candidates& candidates) {
  const int64_t count = objectness.size(0);
  const int64_t width = objectness.size(2);
  const int64_t stride_y = padded_size[0] / objectness.size(1);
  const int64_t stride_x = padded_size[1] / width;
  // Anchors are numbered pixel by pixel, as in torchvision, because ties are broken by this order.
  const at::Tensor flat = objectness.permute({1, 2, 0}).reshape({-1});
  const auto [best, indices] = flat.topk(std::min(most, flat.size(0)));
  candidates.logits.push_back(best);
  const at::Tensor cells = cell_anchors.contiguous();
  const float* const cell = cells.const_data_ptr<float>();
  const float* const codes = deltas.const_data_ptr<float>();
  const int64_t* const index = indices.const_data_ptr<int64_t>();
  for (int64_t i = 0; i < indices.size(0); ++i) {
    const int64_t anchor = index[i] % count;
    const int64_t pixel = index[i] / count;
    const int64_t y = pixel / width;
    const int64_t x = pixel % width;
    const float* const code = codes + 4 * anchor * deltas.stride(0) + y * deltas.stride(1) + x * deltas.stride(2);
    const auto left = static_cast<float>(x * stride_x);
    const auto top = static_cast<float>(y * stride_y);
    const float* const own = cell + 4 * anchor;
    candidates.decoding.add({left + own[0], top + own[1], left + own[2], top + own[3]},
                            {code[0], code[deltas.stride(0)], code[2 * deltas.stride(0)], code[3 * deltas.stride(0)]});
    candidates.levels.push_back(level);
  }
}

}  // namespace

at::Tensor region_proposals(at::TensorList objectness, at::TensorList deltas, at::TensorList cell_anchors,
                            int64_t image, at::IntArrayRef padded_size, at::IntArrayRef image_size,
                            int64_t pre_nms_top_n, int64_t post_nms_top_n, double min_size, double score_thresh,
                            double nms_thresh, at::ArrayRef<double> weights, double bbox_xform_clip) {
  if (objectness.empty() || objectness.size() != deltas.size() || objectness.size() != cell_anchors.size()) {
    kRefuseProposals("objectness, deltas and cell_anchors of as many levels",
                     c10::str(objectness.size(), ", ", deltas.size(), " and ", cell_anchors.size()),
                     "Check the anchor generator's sizes.");
  }
  require_size(kRefuseProposals, "padded_size", padded_size);
  require_size(kRefuseProposals, "image_size", image_size);
  if (pre_nms_top_n < 0 || post_nms_top_n < 0) {
    kRefuseProposals("pre_nms_top_n and post_nms_top_n of 0 or more", c10::str(pre_nms_top_n, " and ", post_nms_top_n),
                     "Check the detector's options.");
  }
  Candidates candidates{decoding_of(kRefuseProposals, weights, bbox_xform_clip), {}, {}};
  for (size_t level = 0; level < objectness.size(); ++level) {
    check_level(objectness[level], deltas[level], cell_anchors[level], image);
    add_level(objectness[level].select(0, image), deltas[level].select(0, image), cell_anchors[level],
              static_cast<int64_t>(level), pre_nms_top_n, padded_size, candidates);
  }
  const at::Tensor scores = at::sigmoid(at::cat(candidates.logits));
  const float* const score = scores.const_data_ptr<float>();
  const std::vector<BoxCorners> boxes = decoded(candidates.decoding, image_size);
  const auto least = static_cast<float>(min_size);
  const auto lowest = static_cast<float>(score_thresh);
  LabelledBoxes passing;
  for (size_t i = 0; i < boxes.size(); ++i) {
    if (is_large(boxes[i], least) && score[i] >= lowest) passing.add(boxes[i], score[i], candidates.levels[i]);
  }
  return std::get<0>(passing.best(nms_thresh, post_nms_top_n));
}

}  // namespace hybrid_rt::operators
