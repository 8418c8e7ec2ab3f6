#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/baddbmm.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/logical_and.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros_like.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <utility>

#include "operators/head_operator_checks.h"
#include "operators/head_operators.h"

#include "operators/no_contraction.h"

namespace hybrid_rt::operators {
namespace {

/// Returns one channel of an image at a fractional position; 0 outside, where missing neighbours count as 0.
template <typename T>
T value_at(const T* channel, int64_t height, int64_t width, T y, T x) {
  if (!(y > T(-1) && x > T(-1) && y < static_cast<T>(height) && x < static_cast<T>(width))) return T(0);
  const auto top = static_cast<int64_t>(std::floor(static_cast<double>(y)));
  const auto left = static_cast<int64_t>(std::floor(static_cast<double>(x)));
  const T low_y = y - static_cast<T>(top);
  const T low_x = x - static_cast<T>(left);
  const T high_y = T(1) - low_y;
  const T high_x = T(1) - low_x;
  const auto pixel = [&](int64_t row, int64_t column) {
    return row >= 0 && row < height && column >= 0 && column < width ? channel[row * width + column] : T(0);
  };
  const T w1 = high_y * high_x;
  const T w2 = high_y * low_x;
  const T w3 = low_y * high_x;
  const T w4 = low_y * low_x;
  return w1 * pixel(top, left) + w2 * pixel(top, left + 1) + w3 * pixel(top + 1, left) + w4 * pixel(top + 1, left + 1);
}

/// Operands of one image.
template <typename T>
struct Image {
  const T* pixels;  // [C, H, W]
  const T* offset;  // [offset groups * taps * 2, height, width]
  const T* mask;    // [offset groups * taps, height, width]; null for none
  int64_t channels;
  int64_t height;
  int64_t width;
};

/// Writes the sample of each tap of each output pixel: [C * taps, output height * output width].
template <typename T>
void fill_columns(const Image<T>& image, const DeformableConvolution& options, int64_t kernel_height,
                  int64_t kernel_width, int64_t output_height, int64_t output_width, T* columns) {
  const int64_t taps = kernel_height * kernel_width;
  const int64_t places = output_height * output_width;
  const int64_t channels_per_group = image.channels / options.offset_groups;
  at::parallel_for(0, image.channels, std::max<int64_t>(16384 / (taps * places), 1), [&](int64_t first, int64_t last) {
    for (int64_t c = first; c < last; ++c) {
      const T* const channel = image.pixels + c * image.height * image.width;
      const int64_t group = c / channels_per_group;
      for (int64_t tap = 0; tap < taps; ++tap) {
        const T* const offset_y = image.offset + (group * taps + tap) * 2 * places;
        const T* const offset_x = offset_y + places;
        const T* const mask = image.mask == nullptr ? nullptr : image.mask + (group * taps + tap) * places;
        T* const column = columns + (c * taps + tap) * places;
        for (int64_t row = 0; row < output_height; ++row) {
          const int64_t top = row * options.stride_h - options.pad_h + tap / kernel_width * options.dilation_h;
          for (int64_t i = 0; i < output_width; ++i) {
            const int64_t left = i * options.stride_w - options.pad_w + tap % kernel_width * options.dilation_w;
            const int64_t place = row * output_width + i;
            const T y = static_cast<T>(top) + offset_y[place];
            const T x = static_cast<T>(left) + offset_x[place];
            const T value = value_at(channel, image.height, image.width, y, x);
            column[place] = mask == nullptr ? value : static_cast<T>(mask[place] * value);
          }
        }
      }
    }
  });
}

/// Returns the weights times the sampled columns [C * taps, places], plus the bias: [O, places].
at::Tensor product(const at::Tensor& weight, const at::Tensor& columns, const at::Tensor& bias, int64_t groups) {
  const int64_t outputs = weight.size(0) / groups;
  return at::baddbmm(bias.view({groups, outputs, 1}), weight.reshape({groups, outputs, -1}),
                     columns.view({groups, columns.size(0) / groups, columns.size(1)}))
      .view({weight.size(0), columns.size(1)});
}

/// Returns the pixels [N, offset groups, C / groups, points] at integer rows and columns [N, offset groups, points]; 0
/// outside.
at::Tensor gathered(const at::Tensor& pixels, const at::Tensor& row, const at::Tensor& column, int64_t height,
                    int64_t width) {
  const at::Tensor inside =
      at::logical_and(at::logical_and(row >= 0, row < height), at::logical_and(column >= 0, column < width));
  const at::Tensor index = at::where(inside, row * width + column, at::zeros_like(row));
  const at::Tensor values =
      pixels.gather(3, index.unsqueeze(2).expand({pixels.size(0), pixels.size(1), pixels.size(2), index.size(2)}));
  return at::where(inside.unsqueeze(2), values, at::zeros_like(values));
}

}  // namespace

at::Tensor deform_conv2d(const at::Tensor& input, const at::Tensor& weight, const at::Tensor& offset,
                         const at::Tensor& mask, const at::Tensor& bias, int64_t stride_h, int64_t stride_w,
                         int64_t pad_h, int64_t pad_w, int64_t dilation_h, int64_t dilation_w, int64_t groups,
                         int64_t offset_groups, bool use_mask) {
  const DeformableConvolution options{stride_h,   stride_w, pad_h,         pad_w,   dilation_h,
                                      dilation_w, groups,   offset_groups, use_mask};
  check_deform_conv2d(input, weight, offset, mask, bias, options);
  const auto [height, width] = options.output_size(input, weight);
  const at::Tensor pixels = input.contiguous();
  const at::Tensor offsets = offset.contiguous();
  const at::Tensor masks = mask.contiguous();
  at::Tensor output = at::empty({input.size(0), weight.size(0), height, width},
                                input.options().memory_format(at::MemoryFormat::Contiguous));
  if (output.numel() == 0) return output;
  const int64_t taps = weight.size(2) * weight.size(3);
  const at::Tensor columns = at::empty({input.size(1) * taps, height * width}, pixels.options());
  AT_DISPATCH_FLOATING_TYPES_AND_HALF(input.scalar_type(), "deform_conv2d", [&] {
    for (int64_t n = 0; n < input.size(0); ++n) {
      const Image<scalar_t> image{pixels[n].const_data_ptr<scalar_t>(),
                                  offsets[n].const_data_ptr<scalar_t>(),
                                  use_mask ? masks[n].const_data_ptr<scalar_t>() : nullptr,
                                  input.size(1),
                                  input.size(2),
                                  input.size(3)};
      fill_columns<scalar_t>(image, options, weight.size(2), weight.size(3), output.size(2), output.size(3),
                             columns.mutable_data_ptr<scalar_t>());
      output[n].copy_(product(weight, columns, bias, groups).view({weight.size(0), output.size(2), output.size(3)}));
    }
  });
  return output;
}

at::Tensor composed_deform_conv2d(const at::Tensor& input, const at::Tensor& weight, const at::Tensor& offset,
                                  const at::Tensor& mask, const at::Tensor& bias, int64_t stride_h, int64_t stride_w,
                                  int64_t pad_h, int64_t pad_w, int64_t dilation_h, int64_t dilation_w, int64_t groups,
                                  int64_t offset_groups, bool use_mask) {
  const DeformableConvolution options{stride_h,   stride_w, pad_h,         pad_w,   dilation_h,
                                      dilation_w, groups,   offset_groups, use_mask};
  check_deform_conv2d(input, weight, offset, mask, bias, options);
  const auto [height, width] = options.output_size(input, weight);
  const int64_t images = input.size(0);
  const int64_t kernel_height = weight.size(2);
  const int64_t kernel_width = weight.size(3);
  const int64_t taps = kernel_height * kernel_width;
  const int64_t points = taps * height * width;
  const auto count = [&](int64_t end) { return at::arange(end, offset.options()); };
  // Position of each tap of each output pixel without its offset, [taps, height, width].
  const at::Tensor top = (count(kernel_height) * dilation_h).repeat_interleave(kernel_width).view({taps, 1, 1}) +
                         (count(height) * stride_h - pad_h).view({1, height, 1});
  const at::Tensor left = (count(kernel_width) * dilation_w).repeat({kernel_height}).view({taps, 1, 1}) +
                          (count(width) * stride_w - pad_w).view({1, 1, width});
  const at::Tensor offsets = offset.reshape({images, offset_groups, taps, 2, height, width});
  const at::Tensor y = (top + offsets.select(3, 0)).reshape({images, offset_groups, points});
  const at::Tensor x = (left + offsets.select(3, 1)).reshape({images, offset_groups, points});
  const at::Tensor inside =
      at::logical_and(at::logical_and(y > -1, y < input.size(2)), at::logical_and(x > -1, x < input.size(3)));
  const at::Tensor row = at::where(inside, y.floor(), at::zeros_like(y));
  const at::Tensor column = at::where(inside, x.floor(), at::zeros_like(x));
  const at::Tensor below = at::where(inside, y - row, at::zeros_like(y)).unsqueeze(2);
  const at::Tensor beside = at::where(inside, x - column, at::zeros_like(x)).unsqueeze(2);
  const at::Tensor rows = row.to(at::kLong);
  const at::Tensor columns = column.to(at::kLong);
  const at::Tensor pixels =
      input.reshape({images, offset_groups, input.size(1) / offset_groups, input.size(2) * input.size(3)});
  const auto corner = [&](int64_t down, int64_t right) {
    return gathered(pixels, rows + down, columns + right, input.size(2), input.size(3));
  };
  at::Tensor sampled = (1 - below) * (1 - beside) * corner(0, 0) + (1 - below) * beside * corner(0, 1) +
                       below * (1 - beside) * corner(1, 0) + below * beside * corner(1, 1);
  sampled = at::where(inside.unsqueeze(2), sampled, at::zeros_like(sampled));
  if (use_mask) sampled = sampled * mask.reshape({images, offset_groups, 1, points});
  sampled = sampled.reshape({images, groups, input.size(1) / groups * taps, height * width});
  const at::Tensor kernels = weight.reshape({1, groups, weight.size(0) / groups, -1});
  return at::matmul(kernels, sampled).reshape({images, weight.size(0), height, width}) +
         bias.view({1, weight.size(0), 1, 1});
}

}  // namespace hybrid_rt::operators
