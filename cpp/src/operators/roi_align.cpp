#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>

#include <algorithm>
#include <limits>
#include <memory>
#include <numeric>
#include <type_traits>
#include <utility>
#include <vector>

#if defined(__SSE2__)
#include <xmmintrin.h>
#endif

#include "hybrid_rt/plugin/output_memory.h"
#include "operators/head_operators.h"
#include "operators/roi_align_rows.h"

#include "operators/no_contraction.h"

#include "operators/roi_sampling.h"  // after the pragmas, which apply to its arithmetic

namespace hybrid_rt::operators {
namespace {

constexpr int64_t kBlock = 16;  // channels that are processed together: a cache line of floats
// Less work than this, about two milliseconds, is not worth a thread: threads spin after their work, on the cores that
// an engine needs next.
constexpr int64_t kPixelsPerThread = 131072;  // of kBlock channels
constexpr int64_t kBoxesPerThread = 2048;     // boxes whose points one thread places

/// A tap in a copy of pixels: the offsets of its rows or columns from the beginning of the copy.
template <typename T>
struct PlacedTap {
  int64_t low;
  int64_t high;
  T low_weight;
  T high_weight;
};

/// A copy of a box's pixels with kBlock adjacent channels, and the taps in it.
template <typename T>
struct Pixels {
  const T* data;
  const PlacedTap<T>* rows;  // in the order of Axis::taps
  const PlacedTap<T>* columns;
};

/// Pools kBlock channels of one box and writes [bins, kBlock].
template <typename T>
[[gnu::always_inline]] inline void pool(const Box<T>& box, Pixels<T> pixels, T* __restrict output) {
  const int64_t bin_rows = static_cast<int64_t>(box.rows.starts.size()) - 1;
  const int64_t bin_columns = static_cast<int64_t>(box.columns.starts.size()) - 1;
  for (int64_t bin_row = 0; bin_row < bin_rows; ++bin_row) {
    for (int64_t bin_column = 0; bin_column < bin_columns; ++bin_column) {
      T sum[kBlock];
      for (int64_t c = 0; c < kBlock; ++c) {
        sum[c] = 0;
      }
      for (int64_t i = box.rows.starts[bin_row]; i < box.rows.starts[bin_row + 1]; ++i) {
        const PlacedTap<T> row = pixels.rows[i];
        const T* const low_row = pixels.data + row.low;
        const T* const high_row = pixels.data + row.high;
        for (int64_t j = box.columns.starts[bin_column]; j < box.columns.starts[bin_column + 1]; ++j) {
          const PlacedTap<T> column = pixels.columns[j];
          const T* const p1 = low_row + column.low;
          const T* const p2 = low_row + column.high;
          const T* const p3 = high_row + column.low;
          const T* const p4 = high_row + column.high;
          const T w1 = row.low_weight * column.low_weight;
          const T w2 = row.low_weight * column.high_weight;
          const T w3 = row.high_weight * column.low_weight;
          const T w4 = row.high_weight * column.high_weight;
          for (int64_t c = 0; c < kBlock; ++c) {
            sum[c] += w1 * p1[c] + w2 * p2[c] + w3 * p3[c] + w4 * p4[c];
          }
        }
      }
      for (int64_t c = 0; c < kBlock; ++c) {
        output[c] = sum[c] / box.points_per_bin;
      }
      output += kBlock;
    }
  }
}

HYBRID_RT_CLONES void pool_box(const Box<float>& box, Pixels<float> pixels, float* output) {
  pool<float>(box, pixels, output);
}

HYBRID_RT_CLONES void pool_box(const Box<double>& box, Pixels<double> pixels, double* output) {
  pool<double>(box, pixels, output);
}

HYBRID_RT_CLONES void pool_box(const Box<at::Half>& box, Pixels<at::Half> pixels, at::Half* output) {
  pool<at::Half>(box, pixels, output);
}

/// The smallest region of an image that contains the pixels of some boxes.
struct Region {
  int64_t row_begin = std::numeric_limits<int64_t>::max();
  int64_t row_end = 0;
  int64_t column_begin = std::numeric_limits<int64_t>::max();
  int64_t column_end = 0;

  template <typename T>
  void include(const Box<T>& box) {
    if (box.pixels() > 0) {
      row_begin = std::min(row_begin, box.rows.pixels.front());
      row_end = std::max(row_end, box.rows.pixels.back() + 1);
      column_begin = std::min(column_begin, box.columns.pixels.front());
      column_end = std::max(column_end, box.columns.pixels.back() + 1);
    }
  }
  int64_t width() const { return std::max<int64_t>(column_end - column_begin, 0); }
  int64_t pixels() const { return std::max<int64_t>(row_end - row_begin, 0) * width(); }
};

/// Boxes [begin, end) of the sorted list, all of one image, which one worker pools.
struct Run {
  int64_t begin;
  int64_t end;
  Region region;
  bool copies_region;  // copies one region for all boxes; otherwise the pixels of each box
};

/// Uninitialised memory that one worker reuses.
template <typename T>
class Buffer {
 public:
  T* of_size(int64_t size) {
    if (size > size_) {
      data_ = std::make_unique_for_overwrite<T[]>(size);
      size_ = size;
    }
    return data_.get();
  }
  const T* data() const { return data_.get(); }

 private:
  std::unique_ptr<T[]> data_;
  int64_t size_ = 0;
};

/// Writes `target` [columns, rows] from `source` [rows, columns]; the strides separate their rows. Works on blocks of
/// 4x4 values, because stores of single values would take as long as all the arithmetic.
template <typename T>
void transpose(const T* source, int64_t source_stride, int64_t rows, int64_t columns, T* __restrict target,
               int64_t target_stride) {
  int64_t row = 0;
#if defined(__SSE2__)
  if constexpr (std::is_same_v<T, float>) {
    for (; row + 4 <= rows; row += 4) {
      const float* const from = source + row * source_stride;
      int64_t column = 0;
      for (; column + 4 <= columns; column += 4) {
        __m128 first = _mm_loadu_ps(from + column);
        __m128 second = _mm_loadu_ps(from + source_stride + column);
        __m128 third = _mm_loadu_ps(from + 2 * source_stride + column);
        __m128 fourth = _mm_loadu_ps(from + 3 * source_stride + column);
        _MM_TRANSPOSE4_PS(first, second, third, fourth);
        float* const to = target + column * target_stride + row;
        _mm_storeu_ps(to, first);
        _mm_storeu_ps(to + target_stride, second);
        _mm_storeu_ps(to + 2 * target_stride, third);
        _mm_storeu_ps(to + 3 * target_stride, fourth);
      }
      for (; column < columns; ++column) {
        for (int64_t i = 0; i < 4; ++i) target[column * target_stride + row + i] = from[i * source_stride + column];
      }
    }
  }
#endif
  for (; row < rows; ++row) {
    for (int64_t column = 0; column < columns; ++column) {
      target[column * target_stride + row] = source[row * source_stride + column];
    }
  }
}

/// kBlock channels of one image, or the remaining ones.
template <typename T>
struct Source {
  const T* data;
  int64_t channels;
  int64_t channel_stride;
  int64_t row_stride;
  int64_t column_stride;
};

/// Copies `count` pixels of a row, starting at `first_column`, to [count, kBlock].
template <typename T>
void copy_row(const Source<T>& source, int64_t row, int64_t first_column, int64_t count, T* __restrict target) {
  const T* const row_data = source.data + row * source.row_stride + first_column * source.column_stride;
  if (source.channel_stride == 1 && source.channels == kBlock) {
    for (int64_t i = 0; i < count; ++i) {
      std::copy_n(row_data + i * source.column_stride, kBlock, target + i * kBlock);
    }
    return;
  }
  if (source.channels < kBlock) {
    std::fill_n(target, count * kBlock, T(0));  // the missing channels
  }
  constexpr int64_t kColumns = 128;  // the written data stays in the first-level cache
  for (int64_t begin = 0; begin < count; begin += kColumns) {
    const int64_t end = std::min(begin + kColumns, count);
    if (source.column_stride == 1) {
      transpose(row_data + begin, source.channel_stride, source.channels, end - begin, target + begin * kBlock, kBlock);
      continue;
    }
    for (int64_t c = 0; c < source.channels; ++c) {
      const T* const channel_data = row_data + c * source.channel_stride;
      for (int64_t i = begin; i < end; ++i) {
        target[i * kBlock + c] = channel_data[i * source.column_stride];
      }
    }
  }
}

/// Copies the pixels at the intersections of some rows and columns to [rows, columns, kBlock]. If channels are far
/// apart in memory, copies channel by channel, because so few pixels of a large image share no pages and cache lines.
template <typename T>
void copy_crossings(const Source<T>& source, const std::vector<int64_t>& rows, const std::vector<int64_t>& columns,
                    T* __restrict target) {
  const auto width = static_cast<int64_t>(columns.size());
  if (source.channel_stride == 1 && source.channels == kBlock) {
    for (const int64_t row : rows) {
      for (const int64_t column : columns) {
        std::copy_n(source.data + row * source.row_stride + column * source.column_stride, kBlock, target);
        target += kBlock;
      }
    }
    return;
  }
  if (source.channels < kBlock) {
    std::fill_n(target, static_cast<int64_t>(rows.size()) * width * kBlock, T(0));
  }
  for (int64_t c = 0; c < source.channels; ++c) {
    T* __restrict to = target + c;
    for (const int64_t row : rows) {
      const T* const row_data = source.data + c * source.channel_stride + row * source.row_stride;
      for (int64_t i = 0; i < width; ++i) {
        to[i * kBlock] = row_data[columns[i] * source.column_stride];
      }
      to += width * kBlock;
    }
  }
}

template <typename T>
class Worker {
 public:
  Worker(int64_t bins, int64_t output_channels) : bins_(bins), output_channels_(output_channels) {}

  /// Pools the boxes order[run.begin .. run.end). `output` points to row 0 and the first channel of `source`; `rows`
  /// are the boxes' rows in the output.
  void pool_run(const std::vector<Box<T>>& boxes, const std::vector<int64_t>& order, const std::vector<int64_t>& rows,
                const Run& run, const Source<T>& source, T* output) {
    const Region& region = run.region;
    const int64_t row_stride = (region.width() | 1) * kBlock;  // odd, so that rows use different cache sets
    if (run.copies_region) {
      T* const copy = pixels_.of_size((region.row_end - region.row_begin) * row_stride);
      for (int64_t row = region.row_begin; row < region.row_end; ++row) {
        copy_row(source, row, region.column_begin, region.width(), copy + (row - region.row_begin) * row_stride);
      }
    }
    for (int64_t i = run.begin; i < run.end; ++i) {
      const Box<T>& box = boxes[order[i]];
      T* const box_output = output + rows[order[i]] * output_channels_ * bins_;
      if (run.copies_region) {
        place_taps(box.rows, region.row_begin, row_stride, rows_);
        place_taps(box.columns, region.column_begin, kBlock, columns_);
      } else {
        copy_box(box, source);
      }
      pool_copied(box, source.channels, box_output);
    }
  }

 private:
  /// In a copy whose first row or column is `first`, `stride` apart.
  static void place_taps(const Axis<T>& axis, int64_t first, int64_t stride, std::vector<PlacedTap<T>>& placed) {
    placed.clear();
    for (const Tap<T>& tap : axis.taps) {
      placed.push_back({(axis.pixels[tap.low] - first) * stride, (axis.pixels[tap.high] - first) * stride,
                        tap.low_weight, tap.high_weight});
    }
  }

  /// In a copy of only those rows or columns that the taps need.
  static void place_taps(const Axis<T>& axis, int64_t stride, std::vector<PlacedTap<T>>& placed) {
    placed.clear();
    for (const Tap<T>& tap : axis.taps) {
      placed.push_back({tap.low * stride, tap.high * stride, tap.low_weight, tap.high_weight});
    }
  }

  void copy_box(const Box<T>& box, const Source<T>& source) {
    const std::vector<int64_t>& rows = box.rows.pixels;
    const std::vector<int64_t>& columns = box.columns.pixels;
    const auto height = static_cast<int64_t>(rows.size());
    const auto width = static_cast<int64_t>(columns.size());
    const bool gapless = width > 0 && columns.back() - columns.front() + 1 == width;
    T* const copy = pixels_.of_size(height * width * kBlock);
    if (gapless) {
      for (int64_t i = 0; i < height; ++i) {
        copy_row(source, rows[i], columns.front(), width, copy + i * width * kBlock);
      }
    } else {
      copy_crossings(source, rows, columns, copy);
    }
    place_taps(box.rows, width * kBlock, rows_);
    place_taps(box.columns, kBlock, columns_);
  }

  void pool_copied(const Box<T>& box, int64_t channels, T* output) {
    T* const pooled = pooled_.of_size(bins_ * kBlock);
    pool_box(box, {pixels_.data(), rows_.data(), columns_.data()}, pooled);
    transpose(pooled, kBlock, bins_, channels, output, bins_);
  }

  int64_t bins_;
  int64_t output_channels_;
  Buffer<T> pixels_;
  Buffer<T> pooled_;
  std::vector<PlacedTap<T>> rows_;  // of one box
  std::vector<PlacedTap<T>> columns_;
};

template <typename T>
std::vector<Box<T>> sample_boxes(const at::Tensor& rois, const std::vector<int64_t>& rows, const Pooling& pooling,
                                 at::IntArrayRef input_sizes) {
  std::vector<Box<T>> boxes(rows.size());
  const T* const data = rois.const_data_ptr<T>();
  at::parallel_for(0, static_cast<int64_t>(rows.size()), kBoxesPerThread, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      boxes[i] = sample_box(data + rows[i] * rois.stride(0), rois.stride(1), pooling, input_sizes, rows[i]);
    }
  });
  return boxes;
}

/// Splits the sorted boxes where the image changes and after `longest` boxes.
template <typename T>
std::vector<Run> cut_into_runs(const std::vector<Box<T>>& boxes, const std::vector<int64_t>& order, int64_t longest) {
  std::vector<Run> runs;
  const auto count = static_cast<int64_t>(order.size());
  for (int64_t begin = 0, end = 0; begin < count; begin = end) {
    Run run{begin, begin, {}, false};
    int64_t pixels = 0;
    while (end < count && end - begin < longest && boxes[order[end]].image == boxes[order[begin]].image) {
      const Box<T>& box = boxes[order[end++]];
      run.region.include(box);
      pixels += box.pixels();
    }
    run.end = end;
    run.copies_region = pixels > run.region.pixels();
    runs.push_back(run);
  }
  return runs;
}

template <typename T>
void roi_align_into(const at::Tensor& input, const at::Tensor& rois, const std::vector<int64_t>& rows,
                    const Pooling& pooling, at::Tensor& output) {
  const std::vector<Box<T>> boxes = sample_boxes<T>(rois, rows, pooling, input.sizes());
  std::vector<int64_t> order(boxes.size());
  std::iota(order.begin(), order.end(), 0);
  // Adjacent boxes share pixels, which are then still in the cache.
  std::stable_sort(order.begin(), order.end(), [&boxes](int64_t left, int64_t right) {
    return std::pair(boxes[left].image, boxes[left].first_row()) <
           std::pair(boxes[right].image, boxes[right].first_row());
  });

  const int64_t channels = input.size(1);
  const int64_t bins = pooling.height * pooling.width;
  const int64_t blocks = (channels + kBlock - 1) / kBlock;
  const bool channels_last = input.stride(1) == 1;
  // Long runs copy fewer pixels twice. Short runs still find their pixels in the cache, and balance the load if there
  // are few channels. The numbers for channels_last were measured with 256 channels and 100 and 1,000 boxes on 200 x
  // 272.
  const int64_t runs_wanted = (2 * at::get_num_threads() + blocks - 1) / blocks;
  const auto count = static_cast<int64_t>(boxes.size());
  const int64_t longest = channels_last ? std::max<int64_t>(count / 8, 8) : (count + runs_wanted - 1) / runs_wanted;
  const std::vector<Run> runs = cut_into_runs(boxes, order, longest);
  const auto runs_count = static_cast<int64_t>(runs.size());
  const T* const input_data = input.const_data_ptr<T>();
  T* const output_data = output.mutable_data_ptr<T>();
  int64_t pixels = 1;
  for (const Box<T>& box : boxes) {
    pixels += box.pixels();
  }
  const int64_t grain = std::max<int64_t>(kPixelsPerThread * runs_count / pixels, 1);
  // Tasks that share cache lines are consecutive: the blocks of a pixel in channels_last, otherwise the rows of a
  // block.
  at::parallel_for(0, blocks * runs_count, grain, [&](int64_t begin, int64_t end) {
    Worker<T> worker(bins, channels);
    for (int64_t task = begin; task < end; ++task) {
      const int64_t first_channel = (channels_last ? task % blocks : task / runs_count) * kBlock;
      const Run& run = runs[channels_last ? task / blocks : task % runs_count];
      const int64_t image = boxes[order[run.begin]].image;
      const Source<T> source{input_data + image * input.stride(0) + first_channel * input.stride(1),
                             std::min(kBlock, channels - first_channel), input.stride(1), input.stride(2),
                             input.stride(3)};
      worker.pool_run(boxes, order, rows, run, source, output_data + first_channel * bins);
    }
  });
}

}  // namespace

void roi_align_rows(const at::Tensor& input, const at::Tensor& rois, const std::vector<int64_t>& rows,
                    const Pooling& pooling, at::Tensor& output) {
  if (rows.empty() || output.numel() == 0) return;
  AT_DISPATCH_FLOATING_TYPES_AND_HALF(input.scalar_type(), "roi_align",
                                      [&] { roi_align_into<scalar_t>(input, rois, rows, pooling, output); });
}

at::Tensor roi_align(const at::Tensor& input, const at::Tensor& rois, double spatial_scale, int64_t pooled_height,
                     int64_t pooled_width, int64_t sampling_ratio, bool aligned) {
  check_roi_align(input, rois, pooled_height, pooled_width);
  at::Tensor output = empty_output({rois.size(0), input.size(1), pooled_height, pooled_width}, input.options());
  std::vector<int64_t> rows(rois.size(0));
  std::iota(rows.begin(), rows.end(), 0);
  roi_align_rows(input, rois, rows, {spatial_scale, pooled_height, pooled_width, sampling_ratio, aligned}, output);
  return output;
}

}  // namespace hybrid_rt::operators
