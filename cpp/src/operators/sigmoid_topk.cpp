#include <ATen/Parallel.h>
#include <ATen/TensorOperators.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/nonzero.h>
#include <ATen/ops/sigmoid.h>
#include <ATen/ops/sqrt.h>
#include <ATen/ops/topk.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <tuple>
#include <vector>

#include "operators/detection_operators.h"
#include "operators/one_thread.h"
#include "operators/refusal.h"
#include "operators/score_scan.h"

namespace hybrid_rt::operators {
namespace {

using Scores = std::tuple<at::Tensor, at::Tensor>;

constexpr int64_t kLogitsPerThread = 1 << 20;
constexpr int64_t kPadding = 64;  // at least the number of floats in the longest vector register

void check(const char* name, const at::Tensor& logits, int64_t topk_candidates) {
  const Refuse refuse{name};
  if (!at::isFloatingType(logits.scalar_type())) {
    refuse("floating-point logits", describe(logits), "Convert them with .float().");
  }
  if (topk_candidates < 0) {
    refuse("topk_candidates of 0 or more", c10::str(topk_candidates), "Check the detector's options.");
  }
}

/// Returns the best scores above the threshold, and the entries of `indices` that they belong to.
Scores best_above(const at::Tensor& scores, const at::Tensor& indices, double score_thresh, int64_t topk_candidates) {
  const at::Tensor passing = at::nonzero(scores > score_thresh).squeeze(1);
  const auto [best, order] = scores.index_select(0, passing).topk(std::min(topk_candidates, passing.size(0)));
  const at::Tensor positions = passing.index_select(0, order);
  return {best, indices.defined() ? indices.index_select(0, positions) : positions};
}

/// Calls find(begin, end, found) for ranges of [0, count) in several threads, and returns the results in order.
template <typename Find>
at::Tensor found_in_parallel(int64_t count, int64_t grain, const Find& find) {
  const int64_t stretches = std::max<int64_t>(std::min<int64_t>(at::get_num_threads(), count / grain), 1);
  std::vector<std::vector<int64_t>> found(stretches);
  at::parallel_for(0, stretches, 1, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) {
      find(count * i / stretches, count * (i + 1) / stretches, found[i]);
    }
  });
  size_t total = 0;
  for (const std::vector<int64_t>& each : found) total += each.size();
  at::Tensor result = at::empty({static_cast<int64_t>(total)}, at::kLong);
  int64_t* target = result.mutable_data_ptr<int64_t>();
  for (const std::vector<int64_t>& each : found) target = std::copy(each.begin(), each.end(), target);
  return result;
}

/// Returns values[indices], padded with zeros, so that torch computes all of them with vector instructions, as it does
/// most of a large tensor.
at::Tensor padded(const float* values, const at::Tensor& indices, int64_t divisor) {
  const int64_t count = indices.size(0);
  at::Tensor result = at::zeros({(count + kPadding - 1) / kPadding * kPadding}, at::kFloat);
  float* const target = result.mutable_data_ptr<float>();
  const int64_t* const index = indices.const_data_ptr<int64_t>();
  for (int64_t i = 0; i < count; ++i) target[i] = values[index[i] / divisor];
  return result;
}

void check_centerness(const at::Tensor& logits, const at::Tensor& centerness) {
  const Refuse refuse{"centered_sigmoid_topk"};
  if (logits.dim() != 2) {
    refuse("logits of shape [A, C]", describe(logits), "Pass one row per anchor of one image.");
  }
  if (centerness.dim() != 2 || centerness.size(0) != logits.size(0) || centerness.size(1) != 1) {
    refuse(c10::str("centerness of shape [", logits.size(0), ", 1], one per row of logits"), describe(centerness),
           "Check the code that computes it.");
  }
  if (centerness.scalar_type() != logits.scalar_type() || centerness.device() != logits.device()) {
    refuse(c10::str("centerness of the dtype and device of logits, ", c10::toString(logits.scalar_type()), " on ",
                    logits.device()),
           c10::str(describe(centerness), " on ", centerness.device()), "Convert or move one of them.");
  }
}

}  // namespace

Scores sigmoid_topk(const at::Tensor& logits, double score_thresh, int64_t topk_candidates) {
  check("sigmoid_topk", logits, topk_candidates);
  if (!logits.is_cpu() || logits.scalar_type() != at::kFloat || !(score_thresh >= 1e-15)) {
    return best_above(at::sigmoid(logits).flatten(), {}, score_thresh, topk_candidates);
  }
  const at::Tensor flat = logits.contiguous();
  const float* const values = flat.const_data_ptr<float>();
  const float bound = logit_bound(score_thresh);
  const at::Tensor indices =
      found_in_parallel(flat.numel(), kLogitsPerThread, [&](int64_t begin, int64_t end, std::vector<int64_t>& found) {
        find_candidates(values, begin, end, bound, found);
      });
  const OneThread one_thread(indices.size(0));
  const at::Tensor scores = at::sigmoid(padded(values, indices, 1)).narrow(0, 0, indices.size(0));
  return best_above(scores, indices, score_thresh, topk_candidates);
}

Scores centered_sigmoid_topk(const at::Tensor& logits, const at::Tensor& centerness, double score_thresh,
                             int64_t topk_candidates) {
  check("centered_sigmoid_topk", logits, topk_candidates);
  check_centerness(logits, centerness);
  if (!logits.is_cpu() || logits.scalar_type() != at::kFloat || !(score_thresh >= 1e-7) || logits.numel() == 0) {
    const at::Tensor scores = at::sqrt(at::sigmoid(logits) * at::sigmoid(centerness)).flatten();
    return best_above(scores, {}, score_thresh, topk_candidates);
  }
  const at::Tensor rows = logits.contiguous();
  const at::Tensor centers = centerness.contiguous();
  const float* const values = rows.const_data_ptr<float>();
  const float* const center = centers.const_data_ptr<float>();
  const int64_t classes = rows.size(1);
  const double lowest = score_thresh * score_thresh * (1 - 1e-5);  // of the product, with room for rounding
  const at::Tensor indices =
      found_in_parallel(rows.size(0), std::max<int64_t>(kLogitsPerThread / classes, 1),
                        [&](int64_t begin, int64_t end, std::vector<int64_t>& found) {
                          for (int64_t row = begin; row < end; ++row) {
                            const float bound = logit_bound(lowest * (1 + std::exp(-static_cast<double>(center[row]))));
                            find_candidates(values, row * classes, (row + 1) * classes, bound, found);
                          }
                        });
  const OneThread one_thread(indices.size(0));
  const at::Tensor scores =
      at::sqrt(at::sigmoid(padded(values, indices, 1)) * at::sigmoid(padded(center, indices, classes)));
  return best_above(scores.narrow(0, 0, indices.size(0)), indices, score_thresh, topk_candidates);
}

}  // namespace hybrid_rt::operators
