#include <algorithm>
#include <cstdint>
#include <limits>

#include "operators/box_overlap.h"
#include "operators/cuda/kernels.h"

namespace hybrid_rt::operators::cuda {
namespace {

using Word = unsigned long long;  // the type of CUDA's atomics
static_assert(sizeof(Word) == sizeof(uint64_t) && sizeof(Word) * 8 == kGroup);

constexpr int kGroupThreads = static_cast<int>(kGroup);
constexpr int kThreads = 256;
constexpr int kWalkThreads = 1024;
constexpr int64_t kMaskWords = int64_t{8} << 20;  // 64 MiB
constexpr int64_t kMaxGridY = 65535;
constexpr int64_t kMaxGridX = std::numeric_limits<int32_t>::max();

template <typename Key>
constexpr Key kLargest = std::numeric_limits<Key>::max();

__device__ int32_t bits_of(float value) { return __float_as_int(value); }
__device__ int64_t bits_of(double value) { return __double_as_longlong(value); }

__device__ int64_t thread_index() { return static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; }
__device__ int64_t thread_count() { return static_cast<int64_t>(gridDim.x) * blockDim.x; }

unsigned blocks_for(int64_t threads) {
  return static_cast<unsigned>(std::min((threads + kThreads - 1) / kThreads, kMaxGridX));
}

template <typename T, typename Key>
__global__ void make_keys(const T* scores, int64_t stride, int64_t count, Key* keys) {
  for (int64_t i = thread_index(); i < count; i += thread_count()) {
    const T score = scores[i * stride];
    const Key bits = bits_of(score);
    // The bits of negative floats, read as a number, are in reverse order, so all bits except the sign are flipped.
    const Key ordered = bits < 0 ? bits ^ kLargest<Key> : bits;
    keys[i] = score != score ? kLargest<Key> : score == T(0) ? Key(0) : ordered;
  }
}

template <typename T>
__global__ void gather_boxes(const T* boxes, int64_t row_stride, int64_t column_stride, const int64_t* order,
                             int64_t count, T* sorted) {
  for (int64_t i = thread_index(); i < count; i += thread_count()) {
    const T* const box = boxes + order[i] * row_stride;
    for (int j = 0; j < 4; ++j) {
      sorted[4 * i + j] = box[j * column_stride];
    }
  }
}

template <typename T>
__device__ Corners<T> corners_at(const T* boxes, int64_t index) {
  const T* const box = boxes + 4 * index;
  return {box[0], box[1], box[2], box[3]};
}

/// A block compares the boxes of group first_group + blockIdx.y, one per thread, with those of a later group or of the
/// same one: bit j of row i's word means that box i would drop the group's box j. Rows of dropped boxes are not
/// written.
template <typename T>
__global__ void __launch_bounds__(kGroupThreads)
    compare_groups(const T* boxes, int64_t count, T threshold, int64_t first_group, int64_t groups, const Word* removed,
                   Word* mask) {
  const int64_t row_group = first_group + blockIdx.y;
  const int64_t column_group = first_group + blockIdx.x;
  if (column_group < row_group) {
    return;
  }
  const Word gone = removed[row_group];
  if (gone == ~Word(0)) {
    return;
  }
  __shared__ Corners<T> others[kGroupThreads];
  __shared__ T areas[kGroupThreads];
  const int thread = static_cast<int>(threadIdx.x);
  const int64_t first_column = column_group * kGroup;
  const int columns = static_cast<int>(count - first_column < kGroup ? count - first_column : kGroup);
  if (thread < columns) {
    const Corners<T> other = corners_at(boxes, first_column + thread);
    others[thread] = other;
    areas[thread] = area_of(other);
  }
  __syncthreads();
  const int64_t row = row_group * kGroup + thread;
  if (row >= count || (gone >> thread & 1) != 0) {
    return;
  }
  const Corners<T> box = corners_at(boxes, row);
  const T area = area_of(box);
  Word dropped = 0;
  for (int j = column_group == row_group ? thread + 1 : 0; j < columns; ++j) {
    if (overlap_of(box, area, others[j], areas[j]) > threshold) {
      dropped |= Word(1) << j;
    }
  }
  mask[(row - first_group * kGroup) * groups + column_group] = dropped;
}

/// One block visits the groups [first_group, end_group), whose rows are in the mask, in order: the kept boxes of a
/// group are known once all groups before it are done.
__global__ void __launch_bounds__(kWalkThreads)
    walk_groups(const Word* mask, const int64_t* order, int64_t count, int64_t first_group, int64_t end_group,
                int64_t groups, Word* removed, int64_t* kept_count, int64_t* kept) {
  __shared__ Word dropped_in_group[kGroupThreads];  // boxes of the group that each of its boxes drops
  __shared__ int staying[kGroupThreads];
  __shared__ int staying_count;
  const int thread = static_cast<int>(threadIdx.x);
  int64_t kept_before = *kept_count;
  for (int64_t group = first_group; group < end_group; ++group) {
    const int64_t first = group * kGroup;
    const int boxes = static_cast<int>(count - first < kGroup ? count - first : kGroup);
    const Word* const rows = mask + (group - first_group) * kGroup * groups;
    if (thread < boxes) {
      dropped_in_group[thread] = rows[thread * groups + group];  // undefined, and not used, for dropped boxes
    }
    __syncthreads();
    if (thread == 0) {
      // volatile, because the words next to the last one that was read have changed in the second-level cache since.
      Word waiting = ~*static_cast<const volatile Word*>(removed + group);
      if (boxes < kGroupThreads) {
        waiting &= (Word(1) << boxes) - 1;
      }
      int found = 0;
      while (waiting != 0) {
        const int box = __ffsll(static_cast<long long>(waiting)) - 1;
        staying[found++] = box;
        waiting &= ~(dropped_in_group[box] | Word(1) << box);
      }
      staying_count = found;
    }
    __syncthreads();
    const int found = staying_count;
    if (thread < found) {
      kept[kept_before + thread] = order[first + staying[thread]];
    }
    kept_before += found;
    // Boxes of later groups that they drop. The threads divide words first, which are adjacent, then rows.
    const int64_t later = groups - group - 1;
    int lanes = 32;
    while (lanes < later && lanes < kWalkThreads) {
      lanes *= 2;
    }
    const int parts = kWalkThreads / lanes;
    const int part = thread / lanes;
    for (int64_t word = group + 1 + thread % lanes; word < groups; word += lanes) {
      Word dropped = 0;
#pragma unroll 4
      for (int i = part; i < found; i += parts) {
        dropped |= rows[staying[i] * groups + word];
      }
      if (dropped != 0) {
        atomicOr(removed + word, dropped);
      }
    }
    __syncthreads();  // the next group reads `removed` and writes the shared arrays
  }
  if (thread == 0) {
    *kept_count = kept_before;
  }
}

template <typename T, typename Key>
void launch_make_keys(const void* scores, int64_t stride, int64_t count, void* keys, cudaStream_t stream) {
  make_keys<<<blocks_for(count), kThreads, 0, stream>>>(static_cast<const T*>(scores), stride, count,
                                                        static_cast<Key*>(keys));
}

template <typename T>
cudaError_t suppress(const NmsBoxes& boxes, T threshold, const NmsWorkspace& workspace, int64_t* kept,
                     int64_t* kept_count, cudaStream_t stream) {
  T* const sorted = static_cast<T*>(workspace.sorted);
  Word* const mask = reinterpret_cast<Word*>(workspace.mask);
  Word* const removed = reinterpret_cast<Word*>(workspace.removed);
  cudaError_t status = cudaMemsetAsync(removed, 0, workspace.groups * sizeof(Word), stream);
  if (status == cudaSuccess) {
    status = cudaMemsetAsync(kept_count, 0, sizeof(*kept_count), stream);
  }
  if (status != cudaSuccess) {
    return status;
  }
  gather_boxes<<<blocks_for(boxes.count), kThreads, 0, stream>>>(static_cast<const T*>(boxes.data), boxes.row_stride,
                                                                 boxes.column_stride, boxes.order, boxes.count, sorted);
  for (int64_t first = 0; first < workspace.groups; first += workspace.mask_groups) {
    const int64_t end = std::min(first + workspace.mask_groups, workspace.groups);
    const dim3 grid(static_cast<unsigned>(workspace.groups - first), static_cast<unsigned>(end - first));
    compare_groups<<<grid, kGroupThreads, 0, stream>>>(sorted, boxes.count, threshold, first, workspace.groups, removed,
                                                       mask);
    walk_groups<<<1, kWalkThreads, 0, stream>>>(mask, boxes.order, boxes.count, first, end, workspace.groups, removed,
                                                kept_count, kept);
    status = cudaGetLastError();
    if (status != cudaSuccess) {
      return status;
    }
  }
  return cudaSuccess;
}

}  // namespace

int64_t mask_groups_of(int64_t groups) {
  return std::clamp<int64_t>(kMaskWords / (kGroup * groups), 1, std::min(groups, kMaxGridY));
}

cudaError_t make_sort_keys(Element element, const void* scores, int64_t stride, int64_t count, void* keys,
                           cudaStream_t stream) {
  if (element == Element::kFloat) {
    launch_make_keys<float, int32_t>(scores, stride, count, keys, stream);
  } else {
    launch_make_keys<double, int64_t>(scores, stride, count, keys, stream);
  }
  return cudaGetLastError();
}

cudaError_t suppress_boxes(Element element, const NmsBoxes& boxes, double threshold, const NmsWorkspace& workspace,
                           int64_t* kept, int64_t* kept_count, cudaStream_t stream) {
  return element == Element::kFloat
             ? suppress<float>(boxes, static_cast<float>(threshold), workspace, kept, kept_count, stream)
             : suppress<double>(boxes, threshold, workspace, kept, kept_count, stream);
}

}  // namespace hybrid_rt::operators::cuda
