#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/ArrayRef.h>

#include <algorithm>
#include <cstddef>
#include <limits>
#include <string_view>

namespace hybrid_rt {

/// For runtimes that lose NaN: OpenVINO 2026.4's and ONNX Runtime's kernels turn relu(NaN) into 0, so that a damaged
/// input would get plausible results. torch passes NaN on.
///
/// Returns true for a float32 tensor in the CPU's memory that holds a NaN.
inline bool holds_nan(const at::Tensor& tensor) {
  if (tensor.scalar_type() != c10::ScalarType::Float || !tensor.is_cpu()) return false;
  constexpr std::size_t kChunk = 4096;  // between two looks: within, the loop has no branch
  const float* value = tensor.const_data_ptr<float>();
  for (auto left = static_cast<std::size_t>(tensor.numel()); left > 0;) {
    const std::size_t count = std::min(left, kChunk);
    int found = 0;
    for (std::size_t i = 0; i < count; ++i) found |= static_cast<int>(value[i] != value[i]);
    if (found != 0) return true;
    value += count;
    left -= count;
  }
  return false;
}

/// Returns true if one of the tensors does.
inline bool any_holds_nan(at::ArrayRef<at::Tensor> tensors) {
  return std::any_of(tensors.begin(), tensors.end(), holds_nan);
}

/// Makes every value of the floating-point tensors NaN.
inline void fill_with_nan(at::ArrayRef<at::Tensor> tensors) {
  for (const at::Tensor& tensor : tensors) {
    if (tensor.is_floating_point()) tensor.fill_(std::numeric_limits<double>::quiet_NaN());
  }
}

/// Returns true if a stored model asks by itself which values are NaN, by the names of its operations: the holes of a
/// depth image, say. Its results for them are intended.
inline bool asks_for_nan(const at::Tensor& model) {
  const std::string_view text(static_cast<const char*>(model.const_data_ptr()), model.nbytes());
  return text.find("IsNaN") != std::string_view::npos || text.find("IsFinite") != std::string_view::npos;
}

}  // namespace hybrid_rt
