#include <ATen/TensorOperators.h>
#include <ATen/ops/nonzero.h>
#include <ATen/ops/zeros.h>

#include <cstdint>
#include <vector>

#include "hybrid_rt/plugin/output_memory.h"
#include "operators/cuda_operators.h"
#include "operators/detection_operators.h"
#include "operators/head_operator_checks.h"
#include "operators/refusal.h"
#include "operators/roi_align_rows.h"

namespace hybrid_rt::operators {
namespace {

void check_multiscale_roi_align(at::TensorList features, const at::Tensor& rois, const at::Tensor& levels,
                                at::ArrayRef<double> scales, int64_t pooled_height, int64_t pooled_width) {
  const char* const name = "multiscale_roi_align";
  const Refuse refuse{name};
  if (features.empty() || features.size() != scales.size()) {
    refuse("features of one level or more, and a scale per level",
           c10::str(features.size(), " levels and ", scales.size(), " scales"), "Check the pooler's options.");
  }
  for (const at::Tensor& feature : features) {
    check_pooling(name, feature, rois, pooled_height, pooled_width);
    if (feature.size(1) != features[0].size(1)) {
      refuse(c10::str("the same channels on all levels, ", features[0].size(1)), describe(feature),
             "Check the code that computes them.");
    }
  }
  if (levels.scalar_type() != at::kLong || levels.dim() != 1 || levels.size(0) != rois.size(0) ||
      levels.device() != rois.device()) {
    refuse(c10::str("levels of dtype Long and shape [", rois.size(0), "] on ", rois.device(), ", one per box"),
           c10::str(describe(levels), " on ", levels.device()), "Check the code that computes them.");
  }
}

/// Returns the boxes of each level, in order.
std::vector<std::vector<int64_t>> rows_of_levels(const at::Tensor& levels, int64_t count) {
  const at::Tensor contiguous = levels.contiguous();
  const int64_t* const level = contiguous.const_data_ptr<int64_t>();
  std::vector<std::vector<int64_t>> rows(count);
  for (int64_t i = 0; i < levels.size(0); ++i) {
    if (level[i] >= 0 && level[i] < count) rows[level[i]].push_back(i);
  }
  return rows;
}

}  // namespace

at::Tensor multiscale_roi_align(at::TensorList features, const at::Tensor& rois, const at::Tensor& levels,
                                at::ArrayRef<double> scales, int64_t pooled_height, int64_t pooled_width,
                                int64_t sampling_ratio) {
  check_multiscale_roi_align(features, rois, levels, scales, pooled_height, pooled_width);
  const auto count = static_cast<int64_t>(features.size());
  const std::vector<int64_t> sizes{rois.size(0), features[0].size(1), pooled_height, pooled_width};
  if (!rois.is_cpu()) {
    at::Tensor output = at::zeros(sizes, rois.options());
    for (int64_t level = 0; level < count; ++level) {
      const at::Tensor rows = at::nonzero(levels == level).squeeze(1);
      const at::Tensor pooled = roi_align_on_cuda(features[level], rois.index_select(0, rows), scales[level],
                                                  pooled_height, pooled_width, sampling_ratio, /*aligned=*/false);
      output.index_copy_(0, rows, pooled);
    }
    return output;
  }
  const std::vector<std::vector<int64_t>> rows = rows_of_levels(levels, count);
  int64_t placed = 0;
  for (const std::vector<int64_t>& each : rows) placed += static_cast<int64_t>(each.size());
  at::Tensor output = placed == rois.size(0) ? empty_output(sizes, rois.options()) : at::zeros(sizes, rois.options());
  for (int64_t level = 0; level < count; ++level) {
    roi_align_rows(features[level], rois, rows[level],
                   {scales[level], pooled_height, pooled_width, sampling_ratio, /*aligned=*/false}, output);
  }
  return output;
}

}  // namespace hybrid_rt::operators
