#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

#include "operators/roi_geometry.h"

// Interface of nms.cu and roi_align.cu: kernels on raw device memory. It is free of torch, whose headers nvcc compiles
// slowly and not with every compiler. Everything is queued on `stream` of the current device, and nothing waits. Each
// function returns the result of its launches. Strides count elements.

namespace hybrid_rt::operators::cuda {

enum class Element { kFloat, kDouble, kHalf };

// nms: float and double.

/// Number of boxes per word of the mask.
inline constexpr int64_t kGroup = 64;

/// Writes integers that sort like the scores (int32 for float, int64 for double): NaN of any sign above everything
/// else, and 0 equal to -0.
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
  int64_t groups;  // number of groups of kGroup boxes
  int64_t mask_groups;
  uint64_t* removed;  // [groups]
};

/// Returns the number of groups that are compared with all others at a time, so that their mask stays within 64 MiB
/// (the mask of a single group exceeds that for more than 8 million boxes).
int64_t mask_groups_of(int64_t groups);

/// Writes the indices of the kept boxes to `kept` ([count]), best first, and their number to `kept_count`. `threshold`
/// is representable in the element's type.
cudaError_t suppress_boxes(Element element, const NmsBoxes& boxes, double threshold, const NmsWorkspace& workspace,
                           int64_t* kept, int64_t* kept_count, cudaStream_t stream);

// roi_align.

struct Features {
  const void* data;  // [N, C, H, W]
  int64_t images;
  int64_t channels;
  int64_t height;
  int64_t width;
  int64_t image_stride;
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

/// Returns the bytes of one box's Placement, aligned to 8.
size_t placement_size(Element element);

/// Places the boxes. `first_refused` becomes the first row that place_box refuses, or -1. A refused box has no points.
cudaError_t place_boxes(Element element, const Rois& rois, const Pooling& pooling, int64_t images, void* placements,
                        int64_t* first_refused, cudaStream_t stream);

/// Writes [count, C, pooled height, pooled width], contiguous; at most 2^31 - 1 bins per box.
cudaError_t pool_boxes(Element element, const Features& features, const void* placements, int64_t count,
                       const Pooling& pooling, void* output, cudaStream_t stream);

}  // namespace hybrid_rt::operators::cuda
