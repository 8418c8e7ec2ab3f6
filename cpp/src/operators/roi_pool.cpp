#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <cstdint>
#include <limits>
#include <tuple>
#include <vector>

#include "operators/head_operator_checks.h"
#include "operators/head_operators.h"

#include "operators/no_contraction.h"

#include "operators/roi_geometry.h"  // after the pragmas, which apply to its arithmetic

// roi_pool, ps_roi_pool and ps_roi_align: torchvision's arithmetic in torchvision's order, see head_operators.h.

namespace hybrid_rt::operators {
namespace {

constexpr int64_t kValuesPerThread = 16384;  // output values; fewer are not worth waking a thread

/// Results of a pooling: values, and the source of each value.
struct Pooled {
  at::Tensor values;
  at::Tensor sources;  // int32
};

Pooled empty_result(const at::Tensor& input, int64_t boxes, int64_t channels, int64_t height, int64_t width) {
  const at::TensorOptions options = input.options().memory_format(at::MemoryFormat::Contiguous);
  return {at::empty({boxes, channels, height, width}, options),
          at::empty({boxes, channels, height, width}, options.dtype(at::kInt))};
}

/// Converts a coordinate to a pixel like torchvision; clears `valid` if the conversion is undefined.
template <typename T>
int64_t rounded(T value, bool& valid) {
  const double nearest = std::round(static_cast<double>(value));
  constexpr double kLimit = std::numeric_limits<int32_t>::max();
  valid = valid && nearest >= -kLimit && nearest <= kLimit;
  return valid ? static_cast<int64_t>(nearest) : 0;
}

/// A box in integer pixels.
struct PixelBox {
  int64_t image = 0;
  int64_t left = 0;
  int64_t top = 0;
  int64_t right = 0;
  int64_t bottom = 0;
  bool is_valid = true;
};

template <typename T>
PixelBox pixel_box(const T* roi, double spatial_scale, int64_t images, int64_t row, const char* name) {
  if (!(roi[0] >= T(0) && static_cast<double>(roi[0]) < static_cast<double>(images))) {
    check_box({Fault::kImage, static_cast<double>(roi[0])}, images, row, name);
  }
  const T scale = static_cast<T>(spatial_scale);
  PixelBox box;
  box.image = static_cast<int64_t>(roi[0]);
  box.left = rounded<T>(roi[1] * scale, box.is_valid);
  box.top = rounded<T>(roi[2] * scale, box.is_valid);
  box.right = rounded<T>(roi[3] * scale, box.is_valid);
  box.bottom = rounded<T>(roi[4] * scale, box.is_valid);
  return box;
}

/// Sizes and values of a pooling's contiguous tensors.
template <typename T>
struct Memory {
  Memory(const at::Tensor& input, const at::Tensor& rois, Pooled& output)
      : images(input.size(0)),
        channels(input.size(1)),
        height(input.size(2)),
        width(input.size(3)),
        count(rois.size(0)),
        rows(output.values.size(2)),
        columns(output.values.size(3)),
        pixels(input.const_data_ptr<T>()),
        boxes(rois.const_data_ptr<T>()),
        values(output.values.mutable_data_ptr<T>()),
        sources(output.sources.mutable_data_ptr<int32_t>()) {}

  int64_t images;
  int64_t channels;
  int64_t height;
  int64_t width;
  int64_t count;  // of boxes
  int64_t rows;   // of bins
  int64_t columns;
  const T* pixels;
  const T* boxes;
  T* values;
  int32_t* sources;
};

struct Span {
  int64_t begin;
  int64_t end;
};

/// Returns the pixels of bin `bin` (of `size` pixels) of a box that begins at `start`, within [0, limit].
template <typename T>
Span span_of(int64_t bin, T size, int64_t start, int64_t limit) {
  const auto begin = static_cast<int64_t>(std::floor(static_cast<double>(static_cast<T>(bin) * size)));
  const auto end = static_cast<int64_t>(std::ceil(static_cast<double>(static_cast<T>(bin + 1) * size)));
  return {std::clamp<int64_t>(begin + start, 0, limit), std::clamp<int64_t>(end + start, 0, limit)};
}

/// Calls `work(first, last)` for ranges of boxes, in several threads.
template <typename Work>
void for_boxes(int64_t boxes, int64_t values_per_box, const Work& work) {
  at::parallel_for(0, boxes, std::max<int64_t>(kValuesPerThread / std::max<int64_t>(values_per_box, 1), 1), work);
}

template <typename T>
void roi_pool_into(const Memory<T>& in, double spatial_scale) {
  for_boxes(in.count, in.channels * in.rows * in.columns, [&](int64_t first, int64_t last) {
    for (int64_t n = first; n < last; ++n) {
      const PixelBox box = pixel_box(in.boxes + 5 * n, spatial_scale, in.images, n, "roi_pool");
      const T bin_height = static_cast<T>(std::max<int64_t>(box.bottom - box.top + 1, 1)) / static_cast<T>(in.rows);
      const T bin_width = static_cast<T>(std::max<int64_t>(box.right - box.left + 1, 1)) / static_cast<T>(in.columns);
      for (int64_t row = 0; row < in.rows; ++row) {
        const Span high = span_of(row, bin_height, box.top, in.height);
        for (int64_t column = 0; column < in.columns; ++column) {
          const Span wide = span_of(column, bin_width, box.left, in.width);
          const bool is_empty = !box.is_valid || high.end <= high.begin || wide.end <= wide.begin;
          for (int64_t c = 0; c < in.channels; ++c) {
            const T* const channel = in.pixels + (box.image * in.channels + c) * in.height * in.width;
            T greatest = is_empty ? T(0) : static_cast<T>(-FLT_MAX);
            int64_t source = -1;
            for (int64_t y = high.begin; !is_empty && y < high.end; ++y) {
              for (int64_t x = wide.begin; x < wide.end; ++x) {
                if (channel[y * in.width + x] > greatest) {
                  greatest = channel[y * in.width + x];
                  source = y * in.width + x;
                }
              }
            }
            const int64_t index = ((n * in.channels + c) * in.rows + row) * in.columns + column;
            in.values[index] = greatest;
            in.sources[index] = static_cast<int32_t>(source);
          }
        }
      }
    }
  });
}

template <typename T>
void ps_roi_pool_into(const Memory<T>& in, double spatial_scale) {
  for_boxes(in.count, in.channels, [&](int64_t first, int64_t last) {
    for (int64_t n = first; n < last; ++n) {
      const PixelBox box = pixel_box(in.boxes + 5 * n, spatial_scale, in.images, n, "ps_roi_pool");
      const T bin_height = static_cast<T>(std::max<int64_t>(box.bottom - box.top, 1)) / static_cast<T>(in.rows);
      const T bin_width = static_cast<T>(std::max<int64_t>(box.right - box.left, 1)) / static_cast<T>(in.columns);
      for (int64_t c = 0; c < in.channels; ++c) {  // output channel, bin row and bin column, consecutively
        const Span high = span_of(c / in.columns % in.rows, bin_height, box.top, in.height - 1);
        const Span wide = span_of(c % in.columns, bin_width, box.left, in.width - 1);
        const bool is_empty = !box.is_valid || high.end <= high.begin || wide.end <= wide.begin;
        const T* const channel = in.pixels + (box.image * in.channels + c) * in.height * in.width;
        T sum = 0;
        for (int64_t y = high.begin; !is_empty && y < high.end; ++y) {
          for (int64_t x = wide.begin; x < wide.end; ++x) sum += channel[y * in.width + x];
        }
        const T area = static_cast<T>((high.end - high.begin) * (wide.end - wide.begin));
        in.values[n * in.channels + c] = is_empty ? T(0) : static_cast<T>(sum / area);
        in.sources[n * in.channels + c] = static_cast<int32_t>(c);
      }
    }
  });
}

/// Returns true if ceil(size) == 0, which means no points along that axis.
template <typename T>
bool has_no_point(T size) {
  return size > T(-1) && size <= T(0);
}

/// Returns the mean of one bin's points. Without points it is torchvision's: 0 divided by ceil(height) * ceil(width).
template <typename T>
T mean_of_points(const T* channel, const Placement<T>& box, int64_t row, int64_t column, int64_t height,
                 int64_t width) {
  if (box.rows == 0) {
    const bool is_undetermined = has_no_point(box.bin_height) || has_no_point(box.bin_width);
    return is_undetermined ? std::numeric_limits<T>::quiet_NaN() : T(0);
  }
  T sum = 0;
  for (int32_t i = 0; i < box.rows; ++i) {
    Tap<T> y;
    const bool is_inside = place_point(box.top, box.bin_height, static_cast<int32_t>(row), i, box.rows, height, y);
    for (int32_t j = 0; is_inside && j < box.columns; ++j) {
      Tap<T> x;
      if (!place_point(box.left, box.bin_width, static_cast<int32_t>(column), j, box.columns, width, x)) continue;
      const T w1 = y.low_weight * x.low_weight;
      const T w2 = y.low_weight * x.high_weight;
      const T w3 = y.high_weight * x.low_weight;
      const T w4 = y.high_weight * x.high_weight;
      sum += w1 * channel[y.low * width + x.low] + w2 * channel[y.low * width + x.high] +
             w3 * channel[y.high * width + x.low] + w4 * channel[y.high * width + x.high];
    }
  }
  return sum / static_cast<T>(static_cast<int>(box.rows * box.columns));
}

template <typename T>
void ps_roi_align_into(const Memory<T>& in, const Pooling& pooling) {
  for_boxes(in.count, in.channels, [&](int64_t first, int64_t last) {
    for (int64_t n = first; n < last; ++n) {
      Placement<T> box;
      check_box(place_box(in.boxes + 5 * n, 1, pooling, in.images, box), in.images, n, "ps_roi_align");
      for (int64_t c = 0; c < in.channels; ++c) {
        const T* const channel = in.pixels + (box.image * in.channels + c) * in.height * in.width;
        in.values[n * in.channels + c] =
            mean_of_points(channel, box, c / pooling.width % pooling.height, c % pooling.width, in.height, in.width);
        in.sources[n * in.channels + c] = static_cast<int32_t>(c);
      }
    }
  });
}

/// Returns the results, of `channels` channels, that `pool` writes into its Memory.
template <typename Pool>
std::tuple<at::Tensor, at::Tensor> pooled(const at::Tensor& input, const at::Tensor& rois, int64_t channels,
                                          int64_t height, int64_t width, const Pool& pool) {
  Pooled output = empty_result(input, rois.size(0), channels, height, width);
  if (output.values.numel() > 0) {
    const at::Tensor pixels = input.contiguous();
    const at::Tensor boxes = rois.contiguous();
    AT_DISPATCH_FLOATING_TYPES_AND_HALF(input.scalar_type(), "pooling",
                                        [&] { pool(Memory<scalar_t>(pixels, boxes, output)); });
  }
  return {output.values, output.sources};
}

}  // namespace

std::tuple<at::Tensor, at::Tensor> roi_pool(const at::Tensor& input, const at::Tensor& rois, double spatial_scale,
                                            int64_t pooled_height, int64_t pooled_width) {
  check_pooling("roi_pool", input, rois, pooled_height, pooled_width);
  return pooled(input, rois, input.size(1), pooled_height, pooled_width,
                [&](const auto& memory) { roi_pool_into(memory, spatial_scale); });
}

std::tuple<at::Tensor, at::Tensor> ps_roi_pool(const at::Tensor& input, const at::Tensor& rois, double spatial_scale,
                                               int64_t pooled_height, int64_t pooled_width) {
  check_position_sensitive_pooling("ps_roi_pool", input, rois, pooled_height, pooled_width);
  const int64_t channels = input.size(1) / (pooled_height * pooled_width);
  return pooled(input, rois, channels, pooled_height, pooled_width,
                [&](const auto& memory) { ps_roi_pool_into(memory, spatial_scale); });
}

std::tuple<at::Tensor, at::Tensor> ps_roi_align(const at::Tensor& input, const at::Tensor& rois, double spatial_scale,
                                                int64_t pooled_height, int64_t pooled_width, int64_t sampling_ratio) {
  check_position_sensitive_pooling("ps_roi_align", input, rois, pooled_height, pooled_width);
  const int64_t channels = input.size(1) / (pooled_height * pooled_width);
  const Pooling pooling{spatial_scale, pooled_height, pooled_width, sampling_ratio, true};
  return pooled(input, rois, channels, pooled_height, pooled_width,
                [&](const auto& memory) { ps_roi_align_into(memory, pooling); });
}

}  // namespace hybrid_rt::operators
