#include <ATen/core/Tensor.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/full.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/zeros.h>
#include <doctest/doctest.h>

#include <cmath>
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include "hybrid_rt/error.h"

// Tests the operators as a TorchScript graph calls them, in a program without torchvision.

namespace {

using hybrid_rt::Error;
using hybrid_rt::ErrorKind;

at::Tensor nms(const at::Tensor& dets, const at::Tensor& scores, double iou_threshold) {
  return c10::Dispatcher::singleton()
      .findSchemaOrThrow("hybrid_rt::nms", "")
      .typed<at::Tensor(const at::Tensor&, const at::Tensor&, double)>()
      .call(dets, scores, iou_threshold);
}

struct Options {
  double spatial_scale = 1.0;
  int64_t height = 1;
  int64_t width = 1;
  int64_t sampling_ratio = 1;
  bool aligned = false;
};

at::Tensor roi_align(const at::Tensor& input, const at::Tensor& rois, const Options& options) {
  return c10::Dispatcher::singleton()
      .findSchemaOrThrow("hybrid_rt::roi_align", "")
      .typed<at::Tensor(const at::Tensor&, const at::Tensor&, double, int64_t, int64_t, int64_t, bool)>()
      .call(input, rois, options.spatial_scale, options.height, options.width, options.sampling_ratio, options.aligned);
}

at::Tensor rows(const std::vector<float>& values, int64_t columns) { return at::tensor(values).reshape({-1, columns}); }

template <typename T>
std::vector<T> values(const at::Tensor& tensor) {
  REQUIRE(tensor.is_contiguous());
  const T* data = tensor.const_data_ptr<T>();
  return {data, data + tensor.numel()};
}

template <typename Call>
std::string input_error_of(Call call) {
  try {
    call();
  } catch (const Error& error) {
    CHECK(error.kind() == ErrorKind::kInput);
    return error.what();
  }
  return "no error";
}

void check_starts_with(const std::string& text, const std::string& start) {
  CHECK_MESSAGE(text.rfind(start, 0) == 0, text);
}

/// One image with one channel of 4 x 4 pixels: 0 to 15, row by row. Its interpolation at (x, y) is 4 y + x.
at::Tensor ramp() { return at::arange(16, at::kFloat).reshape({1, 1, 4, 4}); }

const Options kOnePoint{};

}  // namespace

TEST_CASE("nms keeps the best of overlapping boxes, in descending order") {
  // The first two share 81 of 119 (0.68), the third stands alone.
  const at::Tensor boxes = rows({0, 0, 10, 10, 1, 1, 11, 11, 20, 20, 30, 30}, 4);
  const at::Tensor scores = at::tensor({0.5f, 0.9f, 0.7f});
  CHECK(values<int64_t>(nms(boxes, scores, 0.5)) == std::vector<int64_t>{1, 2});
  CHECK(values<int64_t>(nms(boxes, scores, 0.7)) == std::vector<int64_t>{1, 2, 0});
  CHECK(values<int64_t>(nms(boxes.to(at::kDouble), scores.to(at::kDouble), 0.5)) == std::vector<int64_t>{1, 2});
}

TEST_CASE("nms suppresses only above the threshold, and only by kept boxes") {
  // Adjacent boxes share 1 of 3; the first and the last share nothing.
  const at::Tensor boxes = rows({0, 0, 2, 1, 1, 0, 3, 1, 2, 0, 4, 1}, 4);
  const at::Tensor scores = at::tensor({3.0f, 2.0f, 1.0f});
  CHECK(values<int64_t>(nms(boxes, scores, 0.3)) == std::vector<int64_t>{0, 2});
  CHECK(values<int64_t>(nms(boxes, scores, static_cast<double>(1.0f / 3.0f))) == std::vector<int64_t>{0, 1, 2});
}

TEST_CASE("nms keeps the order of equal scores and puts NaN first") {
  const at::Tensor boxes = rows({0, 0, 1, 1, 5, 5, 6, 6, 9, 9, 10, 10}, 4);
  const float nan = std::numeric_limits<float>::quiet_NaN();
  CHECK(values<int64_t>(nms(boxes, at::full({3}, 0.5), 0.5)) == std::vector<int64_t>{0, 1, 2});
  CHECK(values<int64_t>(nms(boxes, at::tensor({1.0f, 2.0f, nan}), 0.5)) == std::vector<int64_t>{2, 1, 0});
}

TEST_CASE("nms of an empty input is empty") {
  const at::Tensor kept = nms(at::zeros({0, 4}), at::zeros({0}), 0.5);
  CHECK(kept.numel() == 0);
  CHECK(values<int64_t>(kept).empty());  // throws for another dtype
}

TEST_CASE("nms compares with kept boxes beyond the first chunk") {
  // 200 boxes far from each other, then a copy of each with a lower score.
  std::vector<float> boxes;
  for (int copy = 0; copy < 2; ++copy) {
    for (int i = 0; i < 200; ++i) {
      const auto x = static_cast<float>(10 * i);
      boxes.insert(boxes.end(), {x, 0, x + 5, 5});
    }
  }
  const at::Tensor scores = at::arange(400, 0, -1, at::kFloat);
  const auto kept = values<int64_t>(nms(rows(boxes, 4), scores, 0.5));
  CHECK(kept.size() == 200);
  CHECK(kept.back() == 199);
}

TEST_CASE("nms names the input that it refuses") {
  const at::Tensor boxes = rows({0, 0, 1, 1}, 4);
  const at::Tensor scores = at::full({1}, 0.5);
  CHECK(input_error_of([&] { nms(at::zeros({2, 3}), scores, 0.5); }) ==
        "hybrid_rt[operators]: nms: expected dets of shape [N, 4], got Float [2, 3]. "
        "Pass one row (x1, y1, x2, y2) per box.");
  CHECK(input_error_of([&] { nms(boxes, at::zeros({2}), 0.5); }) ==
        "hybrid_rt[operators]: nms: expected scores of shape [1], one per box, got Float [2]. "
        "Pass one score per box.");
  CHECK(input_error_of([&] { nms(boxes.to(at::kHalf), scores.to(at::kHalf), 0.5); }) ==
        "hybrid_rt[operators]: nms: expected dets of dtype Float or Double, got Half [1, 4]. "
        "Convert boxes and scores with .float().");
  CHECK(input_error_of([&] { nms(boxes, scores.to(at::kDouble), 0.5); }) ==
        "hybrid_rt[operators]: nms: expected scores of the dtype of dets, Float, got Double [1]. "
        "Convert one of them.");
}

TEST_CASE("roi_align interpolates at the middle of a bin") {
  // The middle of (0.5, 0.5, 2.5, 1.5) is (1.5, 1.0); half a pixel less with `aligned`.
  const at::Tensor rois = rows({0, 0.5, 0.5, 2.5, 1.5}, 5);
  CHECK(values<float>(roi_align(ramp(), rois, kOnePoint)) == std::vector<float>{5.5f});
  CHECK(values<float>(roi_align(ramp(), rois, {.aligned = true})) == std::vector<float>{3.0f});
}

TEST_CASE("roi_align averages the points of each bin, which follow the scale") {
  // (0, 0, 4, 4) at scale 0.5 is (0, 0, 2, 2): bins of one pixel, the mean of the points is their middle.
  const at::Tensor rois = rows({0, 0, 0, 4, 4}, 5);
  const Options options{.spatial_scale = 0.5, .height = 2, .width = 2, .sampling_ratio = 2};
  const at::Tensor pooled = roi_align(ramp(), rois, options);
  CHECK(pooled.sizes() == at::IntArrayRef{1, 1, 2, 2});
  CHECK(values<float>(pooled) == std::vector<float>{2.5f, 3.5f, 6.5f, 7.5f});
}

TEST_CASE("roi_align takes one point per pixel if the ratio is 0") {
  // Bins of 1.5 pixels, two points each, at 0.375 and 1.125 (mean 0.75) and at 1.875 and 2.625 (mean 2.25).
  const Options options{.height = 2, .width = 2, .sampling_ratio = 0};
  const auto pooled = values<float>(roi_align(ramp(), rows({0, 0, 0, 3, 3}, 5), options));
  CHECK(pooled == std::vector<float>{3.75f, 5.25f, 9.75f, 11.25f});
}

TEST_CASE("roi_align gives the same for every layout and for more channels than one block") {
  const at::Tensor input = at::arange(2 * 37 * 6 * 5, at::kFloat).reshape({2, 37, 6, 5});
  const at::Tensor rois = rows({0, 0, 0, 4, 4, 1, 1, 2, 3, 5}, 5);
  const Options options{.height = 2, .width = 3, .sampling_ratio = 2};
  const at::Tensor expected = roi_align(input, rois, options);
  CHECK(expected.is_contiguous());
  const at::Tensor channels_last = input.contiguous(at::MemoryFormat::ChannelsLast);
  CHECK(values<float>(roi_align(channels_last, rois, options)) == values<float>(expected));
  for (const int64_t channel : {0, 15, 16, 36}) {
    const at::Tensor alone = roi_align(input.narrow(1, channel, 1), rois, options);
    CHECK(values<float>(alone) == values<float>(expected.narrow(1, channel, 1).contiguous()));
  }
}

TEST_CASE("roi_align gives 0 for boxes that are outside, empty or not finite") {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const float infinity = std::numeric_limits<float>::infinity();
  const at::Tensor rois = rows({0, 50, 50, 60, 60, 0, 3, 3, 1, 1, 0, nan, 0, 2, 2, 0, 0, 0, 2, infinity}, 5);
  const auto pooled = values<float>(roi_align(ramp().add(1), rois, {.sampling_ratio = 0, .aligned = true}));
  CHECK(pooled == std::vector<float>(4, 0.0f));
}

TEST_CASE("roi_align of an empty input is empty") {
  const at::Tensor pooled = roi_align(ramp(), at::zeros({0, 5}), {.height = 7, .width = 7});
  CHECK(pooled.sizes() == at::IntArrayRef{0, 1, 7, 7});
}

TEST_CASE("roi_align names the input that it refuses") {
  const at::Tensor rois = rows({0, 0, 0, 2, 2}, 5);
  CHECK(input_error_of([&] { roi_align(ramp()[0], rois, kOnePoint); }) ==
        "hybrid_rt[operators]: roi_align: expected input of shape [N, C, H, W], got Float [1, 4, 4]. "
        "Add the missing dimensions with unsqueeze.");
  CHECK(input_error_of([&] { roi_align(ramp(), at::zeros({1, 4}), kOnePoint); }) ==
        "hybrid_rt[operators]: roi_align: expected rois of shape [K, 5], got Float [1, 4]. "
        "Pass one row (index of the image, x1, y1, x2, y2) per box.");
  CHECK(input_error_of([&] { roi_align(ramp().to(at::kBFloat16), rois.to(at::kBFloat16), kOnePoint); }) ==
        "hybrid_rt[operators]: roi_align: expected input of dtype Float, Double or Half, got BFloat16 [1, 1, 4, 4]. "
        "Convert input and rois with .float().");
  CHECK(input_error_of([&] { roi_align(ramp(), rois, {.height = -1}); }) ==
        "hybrid_rt[operators]: roi_align: expected an output size of 0 or more, got -1 x 1. "
        "Check the pooler's options.");
}

TEST_CASE("roi_align refuses an image that is not in the batch") {
  for (const float image : {-1.0f, 1.0f, 1e9f, std::numeric_limits<float>::quiet_NaN()}) {
    const at::Tensor rois = rows({0, 0, 0, 2, 2, image, 0, 0, 2, 2}, 5);
    const std::string text = input_error_of([&] { roi_align(ramp(), rois, kOnePoint); });
    check_starts_with(text, "hybrid_rt[operators]: roi_align: expected rois[:, 0] to index a batch of 1, got ");
    CHECK(text.find(" in row 1. Number the images from 0.") != std::string::npos);
  }
}

TEST_CASE("roi_align refuses a box with too many points") {
  const at::Tensor rois = rows({0, 0, 0, 1e6f, 1e6f}, 5);
  check_starts_with(input_error_of([&] { roi_align(ramp(), rois, {.sampling_ratio = 0}); }),
                    "hybrid_rt[operators]: roi_align: expected at most 2147483647 sampling points per box, got ");
}
