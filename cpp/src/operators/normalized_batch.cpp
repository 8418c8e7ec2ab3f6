#include <ATen/Parallel.h>

#include <algorithm>
#include <cstdint>
#include <vector>

#include "hybrid_rt/plugin/output_memory.h"
#include "operators/image_rows.h"
#include "operators/known_parts.h"
#include "operators/refusal.h"

namespace hybrid_rt::operators {
namespace {

constexpr Refuse kRefuseBatch{"normalized_batch"};
constexpr int64_t kValuesPerThread = 1 << 19;  // less work takes about as long as waking a thread

void check_normalized_batch(at::TensorList images, at::ArrayRef<double> mean, at::ArrayRef<double> std,
                            at::IntArrayRef heights, at::IntArrayRef widths, int64_t size_divisible) {
  if (images.empty() || heights.size() != images.size() || widths.size() != images.size()) {
    kRefuseBatch("one image or more, and a height and a width for each",
                 c10::str(images.size(), " images, ", heights.size(), " heights and ", widths.size(), " widths"),
                 "Check the caller.");
  }
  if (mean.empty() || std.size() != mean.size() || size_divisible < 1) {
    kRefuseBatch("a mean and a standard deviation per channel, and size_divisible of 1 or more",
                 c10::str(mean.size(), ", ", std.size(), " and ", size_divisible), "Check the detector's transform.");
  }
  for (size_t i = 0; i < images.size(); ++i) {
    const at::Tensor& image = images[i];
    if (!image.is_cpu() || image.scalar_type() != at::kFloat || image.dim() != 3 ||
        image.size(0) != static_cast<int64_t>(mean.size()) || image.numel() == 0) {
      kRefuseBatch(c10::str("images of dtype Float and shape [", mean.size(), ", H, W] on the CPU, with pixels"),
                   c10::str(describe(image), " on ", image.device()), "Convert the image with .float().cpu().");
    }
    if (heights[i] < 1 || widths[i] < 1) {
      kRefuseBatch("sizes of 1 pixel or more", c10::str(heights[i], " x ", widths[i]),
                   "Check the detector's transform.");
    }
  }
}

int64_t rounded_up(at::IntArrayRef sizes, int64_t divisor) {
  const int64_t largest = *std::max_element(sizes.begin(), sizes.end());
  return (largest + divisor - 1) / divisor * divisor;
}

/// Writes one image to its place in the batch, [C, H, W].
void write_image(const at::Tensor& image, at::ArrayRef<double> mean, at::ArrayRef<double> std, int64_t height,
                 int64_t width, const at::Tensor& place) {
  const ResizeAxis rows(image.size(1), height);
  const ResizeAxis columns(image.size(2), width);
  const int64_t padded_height = place.size(1);
  const int64_t padded_width = place.size(2);
  const float* const source = image.const_data_ptr<float>();
  float* const target = place.mutable_data_ptr<float>();
  const int64_t grain = std::max<int64_t>(kValuesPerThread / padded_width, 1);
  at::parallel_for(0, image.size(0) * padded_height, grain, [&](int64_t begin, int64_t end) {
    while (begin < end) {  // channel by channel
      const int64_t channel = begin / padded_height;
      const int64_t first = begin % padded_height;
      const int64_t last = std::min(padded_height, first + end - begin);
      float* const plane = target + channel * padded_height * padded_width;
      const ImageChannel pixels{source + channel * image.stride(0),
                                image.size(2),
                                image.stride(1),
                                image.stride(2),
                                static_cast<float>(mean[channel]),
                                static_cast<float>(std[channel])};
      const int64_t filled = std::clamp(height, first, last);
      resize_rows(pixels, rows, columns, first, filled, plane, padded_width);
      for (int64_t y = first; y < filled; ++y)
        std::fill_n(plane + y * padded_width + width, padded_width - width, 0.0F);
      std::fill(plane + filled * padded_width, plane + last * padded_width, 0.0F);
      begin += last - first;
    }
  });
}

}  // namespace

at::Tensor normalized_batch(at::TensorList images, at::ArrayRef<double> mean, at::ArrayRef<double> std,
                            at::IntArrayRef heights, at::IntArrayRef widths, int64_t size_divisible) {
  check_normalized_batch(images, mean, std, heights, widths, size_divisible);
  const std::vector<int64_t> sizes{static_cast<int64_t>(images.size()), static_cast<int64_t>(mean.size()),
                                   rounded_up(heights, size_divisible), rounded_up(widths, size_divisible)};
  const at::Tensor batch = empty_output(sizes, images[0].options());
  for (size_t i = 0; i < images.size(); ++i) {
    write_image(images[i], mean, std, heights[i], widths[i], batch.select(0, static_cast<int64_t>(i)));
  }
  return batch;
}

}  // namespace hybrid_rt::operators
