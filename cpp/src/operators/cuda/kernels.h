#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

#include "operators/roi_geometry.h"

// What nms.cu and roi_align.cu offer: kernels on raw device memory, free of torch, whose headers nvcc compiles slowly
// and not with every compiler. All is queued on `stream` of the current device; nothing waits. Each function returns
// what the launches returned. Strides count elements.

namespace hybrid_rt::operators::cuda {

enum class Element { kFloat, kDouble, kHalf };

// nms: float and double.

/// Boxes that one word of the mask stands for.
inline constexpr int64_t kGroup = 64;

/// Writes integers, int32 for float and int64 for double, that order as the scores do: NaN, of any sign, above all
/// else, and the zeros alike.
cudaError_t make_sort_keys(Element element, const void* scores, int64_t stride, int64_t count, void* keys,
                           cudaStream_t stream);

struct NmsBoxes {
  const void* data;  // [count, 4]
  int64_t row_stride;
  int64_t column_stride;
  int64_t count;         // at least 1
  const int64_t* order;  // [count], best score first
};

struct NmsWorkspace {
  void* sorted;    // [count, 4] elements
  uint64_t* mask;  // [mask_groups * kGroup, groups]
  int64_t groups;  // of kGroup boxes
  int64_t mask_groups;
  uint64_t* removed;  // [groups]
};

/// How many groups of boxes are compared with all others at a time, so that their mask stays within 64 MiB (a group's
/// own mask is above that for more than 8 million boxes).
int64_t mask_groups_of(int64_t groups);

/// Writes the indices of the boxes that stay to `kept` ([count]), best first, and their number to `kept_count`.
/// `threshold` is a value of the element's type.
cudaError_t suppress_boxes(Element element, const NmsBoxes& boxes, double threshold, const NmsWorkspace& workspace,
                           int64_t* kept, int64_t* kept_count, cudaStream_t stream);

// roi_align.

struct Features {
  const void* data;  // [N, C, H, W]
  int64_t pictures;
  int64_t channels;
  int64_t height;
  int64_t width;
  int64_t picture_stride;
  int64_t channel_stride;
  int64_t row_stride;
  int64_t column_stride;
};

struct Rois {
  const void* data;  // [count, 5]
  int64_t row_stride;
  int64_t column_stride;
  int64_t count;  // at least 1
};

/// Bytes of one box's Placement, aligned to 8.
size_t placement_size(Element element);

/// Places the boxes. `first_refused` becomes the first row that place_box refuses, or -1; such a box has no points.
cudaError_t place_boxes(Element element, const Rois& rois, const Pooling& pooling, int64_t pictures, void* placements,
                        int64_t* first_refused, cudaStream_t stream);

/// Writes [count, C, pooled height, pooled width], contiguous; at most 2^31 - 1 bins per box.
cudaError_t pool_boxes(Element element, const Features& features, const void* placements, int64_t count,
                       const Pooling& pooling, void* output, cudaStream_t stream);

}  // namespace hybrid_rt::operators::cuda
