#include <ATen/TensorOperators.h>
#include <ATen/ops/clamp.h>
#include <ATen/ops/floor.h>
#include <ATen/ops/log2.h>
#include <ATen/ops/scalar_tensor.h>
#include <ATen/ops/sqrt.h>

#include "operators/detection_operators.h"
#include "operators/one_thread.h"
#include "operators/refusal.h"

namespace hybrid_rt::operators {

at::Tensor box_levels(const at::Tensor& boxes, int64_t k_min, int64_t k_max, int64_t canonical_scale,
                      int64_t canonical_level, double eps) {
  constexpr Refuse refuse{"box_levels"};
  if (!at::isFloatingType(boxes.scalar_type()) || boxes.dim() != 2 || boxes.size(1) != 4) {
    refuse("floating-point boxes of shape [K, 4]", describe(boxes), "Pass one row (x1, y1, x2, y2) per box.");
  }
  const OneThread one_thread(boxes.size(0));
  const at::Tensor corners = boxes.scalar_type() == at::kDouble ? boxes : boxes.to(at::kFloat);
  const at::Tensor areas =
      (corners.select(1, 2) - corners.select(1, 0)) * (corners.select(1, 3) - corners.select(1, 1));
  const at::Tensor octaves = at::log2(at::sqrt(areas) / canonical_scale);
  const at::Tensor levels = at::floor(octaves + canonical_level + at::scalar_tensor(eps, corners.scalar_type()));
  return at::clamp(levels, k_min, k_max).to(at::kLong) - k_min;
}

}  // namespace hybrid_rt::operators
