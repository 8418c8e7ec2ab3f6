#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

#include "operators/roi_geometry.h"

namespace hybrid_rt::operators {

/// Applies roi_align to some of the boxes: pools rois[row] into output[row] for each of `rows`, and leaves the other
/// rows unchanged. The inputs have passed check_roi_align. CPU tensors, output contiguous.
void roi_align_rows(const at::Tensor& input, const at::Tensor& rois, const std::vector<int64_t>& rows,
                    const Pooling& pooling, at::Tensor& output);

}  // namespace hybrid_rt::operators
