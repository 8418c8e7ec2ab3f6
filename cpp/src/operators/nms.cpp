#include <ATen/ops/empty.h>
#include <ATen/ops/sort.h>

#include <algorithm>
#include <optional>
#include <tuple>
#include <vector>

#include "operators/head_operator_checks.h"
#include "operators/head_operators.h"
#include "operators/suppression.h"

namespace hybrid_rt::operators {
namespace {

template <typename T>
at::Tensor nms_of(const at::Tensor& dets, const at::Tensor& scores, double iou_threshold) {
  const int64_t count = dets.size(0);
  const at::Tensor order_tensor =
      std::get<1>(at::sort(scores, /*stable=*/std::optional<bool>(true), /*dim=*/0, /*descending=*/true));
  const int64_t* order = order_tensor.const_data_ptr<int64_t>();

  std::vector<T> sorted(4 * count);
  const T* source = dets.const_data_ptr<T>();
  const int64_t row_stride = dets.stride(0);
  const int64_t column_stride = dets.stride(1);
  for (int64_t i = 0; i < count; ++i) {
    for (int64_t j = 0; j < 4; ++j) {
      sorted[4 * i + j] = source[order[i] * row_stride + j * column_stride];
    }
  }

  std::vector<int64_t> positions(count);
  const int64_t kept_count = Suppression<T>().run(sorted.data(), count, round_down<T>(iou_threshold), positions.data());

  at::Tensor result = at::empty({kept_count}, order_tensor.options());
  std::transform(positions.begin(), positions.begin() + kept_count, result.mutable_data_ptr<int64_t>(),
                 [order](int64_t position) { return order[position]; });
  return result;
}

}  // namespace

at::Tensor nms(const at::Tensor& dets, const at::Tensor& scores, double iou_threshold) {
  check_nms(dets, scores);
  return dets.scalar_type() == at::kFloat ? nms_of<float>(dets, scores, iou_threshold)
                                          : nms_of<double>(dets, scores, iou_threshold);
}

}  // namespace hybrid_rt::operators
