#include <ATen/TensorOperators.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/tensor.h>
#include <doctest/doctest.h>

#include <cstdint>
#include <string>
#include <vector>

#include "common/digest.h"
#include "operators/detection_operators.h"
#include "operators/head_operators.h"
#include "operators/known_parts.h"

// Compares the operators' results with those of x86-64, which tests/python/operators compares with torchvision's: a
// CPU with fused multiply-add must not round differently.

namespace {

namespace operators = hybrid_rt::operators;

/// Returns floats that a linear congruential generator computes from exact operations, in [low, high).
at::Tensor numbers(at::IntArrayRef sizes, double low, double high, uint32_t seed) {
  int64_t count = 1;
  for (const int64_t size : sizes) count *= size;
  std::vector<float> values;
  for (int64_t i = 0; i < count; ++i) {
    seed = seed * 1664525U + 1013904223U;
    values.push_back(static_cast<float>(low + (high - low) * ((seed >> 8) / 16777216.0)));
  }
  return at::tensor(values).reshape(sizes);
}

/// Returns boxes [count, 4] in an image of 40 pixels, of up to 12 pixels.
at::Tensor boxes(int64_t count) {
  const at::Tensor corners = numbers({count, 2}, 0, 28, 1);
  return at::cat({corners, corners + numbers({count, 2}, 1, 12, 2)}, 1);
}

/// Returns boxes [count, 5] with the index of their image, 0.
at::Tensor rois(int64_t count) { return at::cat({numbers({count, 1}, 0, 0, 0), boxes(count)}, 1); }

/// Returns the first digits of the SHA-256 of a tensor's values.
std::string bits(const at::Tensor& tensor) {
  const at::Tensor values = tensor.contiguous();
  return hybrid_rt::sha256(values.const_data_ptr(), values.nbytes()).substr(0, 8);
}

}  // namespace

TEST_CASE("suppression keeps the same boxes on every CPU") {
  const at::Tensor candidates = boxes(400);
  const at::Tensor scores = numbers({400}, 0, 1, 3);
  CHECK(bits(operators::nms(candidates, scores, 0.3)) == "6e7dbc7e");
  CHECK(bits(operators::batched_nms(candidates, scores, at::arange(400).remainder(3), 0.5)) == "db67eb26");
}

TEST_CASE("poolings give the same bits on every CPU") {
  const at::Tensor features = numbers({1, 18, 40, 37}, -1, 1, 4);
  for (const bool is_channels_last : {false, true}) {
    CAPTURE(is_channels_last);
    const at::Tensor input = is_channels_last ? features.contiguous(at::MemoryFormat::ChannelsLast) : features;
    CHECK(bits(operators::roi_align(input, rois(60), 0.7, 7, 7, 2, false)) == "49623c68");
    CHECK(bits(operators::roi_align(input, rois(60), 0.7, 5, 6, 0, true)) == "02194d0f");
    CHECK(bits(operators::roi_align(input.to(at::kDouble), rois(60).to(at::kDouble), 0.7, 7, 7, 2, false)) ==
          "59b40edc");
    CHECK(bits(std::get<0>(operators::roi_pool(input, rois(60), 0.7, 7, 7))) == "448688fb");
    CHECK(bits(std::get<0>(operators::ps_roi_pool(input, rois(60), 0.7, 3, 3))) == "68cb61db");
    CHECK(bits(std::get<0>(operators::ps_roi_align(input, rois(60), 0.7, 3, 3, 2))) == "5a8ba041");
  }
}

TEST_CASE("a resized and normalized image has the same bits on every CPU") {
  const at::Tensor image = numbers({3, 31, 43}, 0, 1, 5);
  CHECK(bits(operators::normalized_batch({image}, {0.485, 0.456, 0.406}, {0.229, 0.224, 0.225}, {50}, {69}, 32)) ==
        "5a991584");
}
