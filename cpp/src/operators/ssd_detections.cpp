#include <ATen/Parallel.h>
#include <ATen/TensorOperators.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/full_like.h>
#include <ATen/ops/nonzero.h>
#include <ATen/ops/sort.h>
#include <ATen/ops/topk.h>

#include <algorithm>
#include <cstdint>
#include <tuple>
#include <vector>

#include "operators/class_candidates.h"
#include "operators/detection_operators.h"
#include "operators/refusal.h"

namespace hybrid_rt::operators {
namespace {

using Detections = std::tuple<at::Tensor, at::Tensor, at::Tensor>;

constexpr int64_t kScoresPerThread = 1 << 20;
constexpr int64_t kCandidatesPerThread = 1 << 16;  // 2 ms

void check_ssd_detections(const at::Tensor& boxes, const at::Tensor& scores, int64_t topk_candidates) {
  const Refuse refuse{"ssd_detections"};
  if (boxes.dim() != 2 || boxes.size(1) != 4) {
    refuse("boxes of shape [A, 4]", describe(boxes), "Pass one row (x1, y1, x2, y2) per anchor of one image.");
  }
  if (scores.dim() != 2 || scores.size(0) != boxes.size(0) || scores.size(1) < 2) {
    refuse(c10::str("scores of shape [", boxes.size(0), ", C], one row per box, with the background and a class"),
           describe(scores), "Check the code that computes them.");
  }
  if (boxes.scalar_type() != at::kFloat && boxes.scalar_type() != at::kDouble) {
    refuse("boxes of dtype Float or Double", describe(boxes), "Convert boxes and scores with .float().");
  }
  if (scores.scalar_type() != boxes.scalar_type() || scores.device() != boxes.device()) {
    refuse(c10::str("scores of the dtype and device of boxes, ", c10::toString(boxes.scalar_type()), " on ",
                    boxes.device()),
           c10::str(describe(scores), " on ", scores.device()), "Convert or move one of them.");
  }
  if (topk_candidates < 0) {
    refuse("topk_candidates of 0 or more", c10::str(topk_candidates), "Check the detector's options.");
  }
}

/// Candidates of all classes, class by class: their anchors, scores and labels.
struct Chosen {
  at::Tensor anchors;
  at::Tensor scores;
  at::Tensor labels;
};

/// Selects the candidates with torch's operators.
Chosen chosen_class_by_class(const at::Tensor& scores, double score_thresh, int64_t topk_candidates) {
  std::vector<at::Tensor> anchors;
  std::vector<at::Tensor> best;
  std::vector<at::Tensor> labels;
  for (int64_t label = 1; label < scores.size(1); ++label) {
    const at::Tensor score = scores.select(1, label);
    const at::Tensor passing = at::nonzero(score > score_thresh).squeeze(1);
    const auto [values, order] = score.index_select(0, passing).topk(std::min(topk_candidates, passing.size(0)));
    anchors.push_back(passing.index_select(0, order));
    best.push_back(values);
    labels.push_back(at::full_like(anchors.back(), label));
  }
  return {at::cat(anchors), at::cat(best), at::cat(labels)};
}

/// Returns those of the contiguous scores [A, C] that are above the threshold, by class and then by anchor.
ClassCandidates candidates_of(const at::Tensor& scores, float threshold) {
  const int64_t rows = scores.size(0);
  const int64_t classes = scores.size(1);
  const float* const data = scores.const_data_ptr<float>();
  const int64_t stretches =
      std::max<int64_t>(std::min<int64_t>(at::get_num_threads(), rows * classes / kScoresPerThread), 1);
  std::vector<int32_t> counts(stretches * classes, 0);
  at::parallel_for(0, stretches, 1, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) {
      count_candidates(data, classes, rows * i / stretches, rows * (i + 1) / stretches, threshold,
                       counts.data() + i * classes);
    }
  });
  ClassCandidates found;
  found.begin.resize(classes + 1);
  std::vector<int64_t> next(stretches * classes);
  int64_t total = 0;
  for (int64_t label = 0; label < classes; ++label) {
    found.begin[label] = total;
    for (int64_t i = 0; i < stretches; ++i) {
      next[i * classes + label] = total;
      total += counts[i * classes + label];
    }
  }
  found.begin[classes] = total;
  found.all.resize(total);
  at::parallel_for(0, stretches, 1, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) {
      place_candidates(data, classes, rows * i / stretches, rows * (i + 1) / stretches, threshold, found.all.data(),
                       next.data() + i * classes);
    }
  });
  return found;
}

/// Orders the first `wanted` of `sorted` like torch's topk, which alone determines the order of equal scores.
void order_as_topk(const Candidate* candidates, int64_t count, int64_t wanted, Candidate* sorted) {
  at::Tensor scores = at::empty({count}, at::kFloat);
  std::transform(candidates, candidates + count, scores.mutable_data_ptr<float>(),
                 [](const Candidate& each) { return each.score; });
  const at::Tensor order = std::get<1>(scores.topk(wanted));
  const int64_t* const positions = order.const_data_ptr<int64_t>();
  std::transform(positions, positions + wanted, sorted, [candidates](int64_t i) { return candidates[i]; });
}

/// Does the same as chosen_class_by_class in one pass, for contiguous float32 scores.
Chosen chosen_at_once(const at::Tensor& scores, double score_thresh, int64_t topk_candidates) {
  const int64_t classes = scores.size(1);
  const ClassCandidates found = candidates_of(scores, static_cast<float>(score_thresh));
  std::vector<Candidate> sorted = found.all;
  std::vector<int64_t> wanted(classes);
  std::vector<uint8_t> is_determined(classes, 1);
  const auto total = static_cast<int64_t>(sorted.size());
  const int64_t grain = std::max<int64_t>(kCandidatesPerThread * classes / std::max<int64_t>(total, 1), 1);
  at::parallel_for(0, classes, grain, [&](int64_t first, int64_t last) {
    for (int64_t label = first; label < last; ++label) {
      Candidate* const begin = sorted.data() + found.begin[label];
      Candidate* const end = sorted.data() + found.begin[label + 1];
      wanted[label] = std::min<int64_t>(topk_candidates, end - begin);
      is_determined[label] = bring_best_to_front(begin, end, wanted[label]) ? 1 : 0;
    }
  });
  int64_t chosen = 0;
  for (int64_t label = 0; label < classes; ++label) {
    const int64_t begin = found.begin[label];
    if (is_determined[label] == 0) {
      order_as_topk(found.all.data() + begin, found.begin[label + 1] - begin, wanted[label], sorted.data() + begin);
    }
    chosen += wanted[label];
  }
  const Chosen result{at::empty({chosen}, at::kLong), at::empty({chosen}, at::kFloat), at::empty({chosen}, at::kLong)};
  int64_t* anchor = result.anchors.mutable_data_ptr<int64_t>();
  auto* score = result.scores.mutable_data_ptr<float>();
  int64_t* target_label = result.labels.mutable_data_ptr<int64_t>();
  for (int64_t label = 0; label < classes; ++label) {
    const Candidate* const begin = sorted.data() + found.begin[label];
    for (const Candidate* each = begin; each != begin + wanted[label]; ++each) {
      *anchor++ = each->anchor;
      *score++ = each->score;
      *target_label++ = label;
    }
  }
  return result;
}

}  // namespace

Detections ssd_detections(const at::Tensor& boxes, const at::Tensor& scores, double score_thresh,
                          int64_t topk_candidates, double nms_thresh, int64_t detections_per_img) {
  check_ssd_detections(boxes, scores, topk_candidates);
  const bool at_once = scores.is_cpu() && scores.scalar_type() == at::kFloat;
  const Chosen chosen = at_once ? chosen_at_once(scores.contiguous(), score_thresh, topk_candidates)
                                : chosen_class_by_class(scores, score_thresh, topk_candidates);
  const at::Tensor candidates = boxes.index_select(0, chosen.anchors);
  const at::Tensor kept =
      batched_nms(candidates, chosen.scores, chosen.labels, nms_thresh).slice(0, 0, detections_per_img);
  return {candidates.index_select(0, kept), chosen.scores.index_select(0, kept), chosen.labels.index_select(0, kept)};
}

}  // namespace hybrid_rt::operators
