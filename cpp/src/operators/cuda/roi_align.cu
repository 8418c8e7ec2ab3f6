#include <cuda_fp16.h>

#include <algorithm>
#include <cstdint>
#include <limits>

#include "operators/cuda/kernels.h"

namespace hybrid_rt::operators::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kMaxGridX = std::numeric_limits<int32_t>::max();
constexpr int64_t kElementsPerBlock = 1024;
constexpr int kTile = 32;                            // channels, and bins
constexpr int64_t kMinChannelsForTiles = kTile / 2;  // with fewer, most of a warp is idle

/// float16 arithmetic like at::Half's: each operation is computed in float and its result rounded.
class Half {
 public:
  Half() = default;
  HYBRID_RT_HOST_DEVICE explicit Half(float value) : value_(__float2half_rn(value)) {}
  HYBRID_RT_HOST_DEVICE operator float() const { return __half2float(value_); }

  HYBRID_RT_HOST_DEVICE friend Half operator+(Half a, Half b) { return Half(float(a) + float(b)); }
  HYBRID_RT_HOST_DEVICE friend Half operator-(Half a, Half b) { return Half(float(a) - float(b)); }
  HYBRID_RT_HOST_DEVICE friend Half operator*(Half a, Half b) { return Half(float(a) * float(b)); }
  HYBRID_RT_HOST_DEVICE friend Half operator/(Half a, Half b) { return Half(float(a) / float(b)); }

 private:
  __half value_;
};
static_assert(sizeof(Half) == 2);

__device__ int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

unsigned blocks_for(int64_t tasks) { return static_cast<unsigned>(std::min(tasks, kMaxGridX)); }

template <typename T>
__global__ void place(const T* rois, int64_t row_stride, int64_t column_stride, int64_t count, Pooling pooling,
                      int64_t images, Placement<T>* placements, unsigned long long* first_refused) {
  const int64_t threads = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < count; i += threads) {
    Placement<T> placement;
    const BoxVerdict verdict = place_box(rois + i * row_stride, column_stride, pooling, images, placement);
    if (verdict.fault != Fault::kNone) {
      atomicMin(first_refused, static_cast<unsigned long long>(i));
    }
    placements[i] = placement;
  }
}

/// Computes one bin of one channel in the order of the CPU kernel. No two threads share a sum.
template <typename T>
__device__ T pool_bin(const Placement<T>& box, int32_t bin_row, int32_t bin_column, const T* channel,
                      const Features& features) {
  T sum = T(0);
  for (int32_t i = 0; i < box.rows; ++i) {
    Tap<T> row;
    if (!place_point(box.top, box.bin_height, bin_row, i, box.rows, features.height, row)) {
      continue;
    }
    const T* const low_row = channel + row.low * features.row_stride;
    const T* const high_row = channel + row.high * features.row_stride;
    for (int32_t j = 0; j < box.columns; ++j) {
      Tap<T> column;
      if (!place_point(box.left, box.bin_width, bin_column, j, box.columns, features.width, column)) {
        continue;
      }
      const int64_t low_column = column.low * features.column_stride;
      const int64_t high_column = column.high * features.column_stride;
      const T w1 = row.low_weight * column.low_weight;
      const T w2 = row.low_weight * column.high_weight;
      const T w3 = row.high_weight * column.low_weight;
      const T w4 = row.high_weight * column.high_weight;
      const T value =
          w1 * low_row[low_column] + w2 * low_row[high_column] + w3 * high_row[low_column] + w4 * high_row[high_column];
      sum = sum + value;
    }
  }
  return sum / box.points_per_bin;
}

/// A block processes some channels of a box, a thread one element at a time. Adjacent threads write adjacent elements,
/// and read adjacent pixels if columns are adjacent in memory.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    pool_channels(Features features, const Placement<T>* placements, int64_t count, int32_t bins, int32_t bin_columns,
                  int64_t channels_per_task, T* output) {
  const T* const data = static_cast<const T*>(features.data);
  const int64_t tasks_per_box = (features.channels + channels_per_task - 1) / channels_per_task;
  for (int64_t task = blockIdx.x; task < count * tasks_per_box; task += gridDim.x) {
    const int64_t index = task / tasks_per_box;
    const int64_t first_channel = task % tasks_per_box * channels_per_task;
    const Placement<T> box = placements[index];
    const T* const source = data + box.image * features.image_stride + first_channel * features.channel_stride;
    T* const target = output + (index * features.channels + first_channel) * bins;
    // Unsigned 32-bit numbers, because they are divided: a task has fewer than 2^31 elements, and kThreads are added.
    const auto elements = static_cast<uint32_t>(smaller(channels_per_task, features.channels - first_channel) * bins);
    for (uint32_t i = threadIdx.x; i < elements; i += kThreads) {
      const uint32_t channel = i / static_cast<uint32_t>(bins);
      const uint32_t bin = i - channel * static_cast<uint32_t>(bins);
      const uint32_t bin_row = bin / static_cast<uint32_t>(bin_columns);
      const uint32_t bin_column = bin - bin_row * static_cast<uint32_t>(bin_columns);
      target[i] = pool_bin(box, static_cast<int32_t>(bin_row), static_cast<int32_t>(bin_column),
                           source + channel * features.channel_stride, features);
    }
  }
}

/// Does the same if channels are adjacent in memory: a warp reads kTile of them at once, and the block transposes a
/// tile of channels and bins before it writes it.
template <typename T>
__global__ void __launch_bounds__(kThreads) pool_tiles(Features features, const Placement<T>* placements, int64_t count,
                                                       int32_t bins, int32_t bin_columns, T* output) {
  constexpr int kWarps = kThreads / kTile;
  __shared__ T tile[kTile][kTile + 1];  // [bin][channel]; the odd width keeps columns in different banks
  const T* const data = static_cast<const T*>(features.data);
  const int lane = static_cast<int>(threadIdx.x) % kTile;
  const int warp = static_cast<int>(threadIdx.x) / kTile;
  const int64_t channel_tiles = (features.channels + kTile - 1) / kTile;
  const int64_t bin_tiles = (static_cast<int64_t>(bins) + kTile - 1) / kTile;
  for (int64_t task = blockIdx.x; task < count * bin_tiles * channel_tiles; task += gridDim.x) {
    const int64_t first_channel = task % channel_tiles * kTile;
    const int64_t first_bin = task / channel_tiles % bin_tiles * kTile;
    const int64_t index = task / channel_tiles / bin_tiles;
    const int channels = static_cast<int>(smaller(kTile, features.channels - first_channel));
    const int tile_bins = static_cast<int>(smaller(kTile, bins - first_bin));
    const Placement<T> box = placements[index];
    if (lane < channels) {
      const T* const source =
          data + box.image * features.image_stride + (first_channel + lane) * features.channel_stride;
      for (int i = warp; i < tile_bins; i += kWarps) {
        const auto bin = static_cast<int32_t>(first_bin) + i;
        tile[i][lane] = pool_bin(box, bin / bin_columns, bin % bin_columns, source, features);
      }
    }
    __syncthreads();
    if (lane < tile_bins) {
      for (int i = warp; i < channels; i += kWarps) {
        output[(index * features.channels + first_channel + i) * bins + first_bin + lane] = tile[lane][i];
      }
    }
    __syncthreads();
  }
}

template <typename T>
cudaError_t place_all(const Rois& rois, const Pooling& pooling, int64_t images, void* placements,
                      int64_t* first_refused, cudaStream_t stream) {
  // All bits set: the largest number for atomicMin, and -1 for the reader.
  const cudaError_t status = cudaMemsetAsync(first_refused, 0xFF, sizeof(*first_refused), stream);
  if (status != cudaSuccess) {
    return status;
  }
  place<<<blocks_for((rois.count + kThreads - 1) / kThreads), kThreads, 0, stream>>>(
      static_cast<const T*>(rois.data), rois.row_stride, rois.column_stride, rois.count, pooling, images,
      static_cast<Placement<T>*>(placements), reinterpret_cast<unsigned long long*>(first_refused));
  return cudaGetLastError();
}

template <typename T>
cudaError_t pool_all(const Features& features, const void* placements, int64_t count, const Pooling& pooling,
                     void* output, cudaStream_t stream) {
  const auto* const boxes = static_cast<const Placement<T>*>(placements);
  const auto bins = static_cast<int32_t>(pooling.height * pooling.width);
  const auto bin_columns = static_cast<int32_t>(pooling.width);
  auto* const target = static_cast<T*>(output);
  if (features.channel_stride == 1 && features.channels >= kMinChannelsForTiles) {
    const int64_t tiles = (features.channels + kTile - 1) / kTile * ((static_cast<int64_t>(bins) + kTile - 1) / kTile);
    pool_tiles<<<blocks_for(count * tiles), kThreads, 0, stream>>>(features, boxes, count, bins, bin_columns, target);
  } else {
    const int64_t channels_per_task = std::clamp<int64_t>(kElementsPerBlock / bins, 1, features.channels);
    const int64_t tasks = (features.channels + channels_per_task - 1) / channels_per_task * count;
    pool_channels<<<blocks_for(tasks), kThreads, 0, stream>>>(features, boxes, count, bins, bin_columns,
                                                              channels_per_task, target);
  }
  return cudaGetLastError();
}

}  // namespace

size_t placement_size(Element element) {
  static_assert(alignof(Placement<double>) == 8 && alignof(Placement<float>) == 8 && alignof(Placement<Half>) == 8);
  switch (element) {
    case Element::kFloat:
      return sizeof(Placement<float>);
    case Element::kDouble:
      return sizeof(Placement<double>);
    case Element::kHalf:
      return sizeof(Placement<Half>);
  }
  return 0;
}

cudaError_t place_boxes(Element element, const Rois& rois, const Pooling& pooling, int64_t images, void* placements,
                        int64_t* first_refused, cudaStream_t stream) {
  switch (element) {
    case Element::kFloat:
      return place_all<float>(rois, pooling, images, placements, first_refused, stream);
    case Element::kDouble:
      return place_all<double>(rois, pooling, images, placements, first_refused, stream);
    case Element::kHalf:
      return place_all<Half>(rois, pooling, images, placements, first_refused, stream);
  }
  return cudaErrorInvalidValue;
}

cudaError_t pool_boxes(Element element, const Features& features, const void* placements, int64_t count,
                       const Pooling& pooling, void* output, cudaStream_t stream) {
  switch (element) {
    case Element::kFloat:
      return pool_all<float>(features, placements, count, pooling, output, stream);
    case Element::kDouble:
      return pool_all<double>(features, placements, count, pooling, output, stream);
    case Element::kHalf:
      return pool_all<Half>(features, placements, count, pooling, output, stream);
  }
  return cudaErrorInvalidValue;
}

}  // namespace hybrid_rt::operators::cuda
