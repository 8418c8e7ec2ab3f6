#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/ArrayRef.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <limits>
#include <string_view>

namespace hybrid_rt {

/// Returns true for a float32 tensor in the CPU's memory that holds a NaN.
///
/// Some runtimes lose NaN: the kernels of OpenVINO 2026.4, ONNX Runtime and AOTInductor turn relu(NaN) into 0, so that
/// a damaged input would give plausible results. torch propagates NaN.
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

/// Returns true if holds_nan() is true for any of the tensors.
inline bool any_holds_nan(at::ArrayRef<at::Tensor> tensors) {
  return std::any_of(tensors.begin(), tensors.end(), holds_nan);
}

/// Makes every value of the floating-point tensors NaN.
inline void fill_with_nan(at::ArrayRef<at::Tensor> tensors) {
  for (const at::Tensor& tensor : tensors) {
    if (tensor.is_floating_point()) tensor.fill_(std::numeric_limits<double>::quiet_NaN());
  }
}

/// Returns true if a stored model tests for NaN itself, judged by the names of its operations: OpenVINO's or ONNX's.
/// Its results for NaN are then intended, for instance for the holes in a depth image.
inline bool asks_for_nan(const at::Tensor& model) {
  const std::string_view text(static_cast<const char*>(model.const_data_ptr()), model.nbytes());
  constexpr std::array<std::string_view, 2> names{"IsNaN", "IsFinite"};
  return std::any_of(names.begin(), names.end(),
                     [&](std::string_view name) { return text.find(name) != std::string_view::npos; });
}

}  // namespace hybrid_rt
