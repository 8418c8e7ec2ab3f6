#include <ATen/TensorOperators.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/allclose.h>
#include <ATen/ops/equal.h>
#include <ATen/ops/full.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/rand.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/zeros.h>
#include <doctest/doctest.h>

#include <limits>
#include <tuple>
#include <vector>

#include "captured_log.h"
#include "operators/cuda_operators.h"
#include "operators/head_operators.h"

// Tests the composed operators, which CUDA tensors use, on the CPU.
// tests/python/operators/test_torchvision_operators.py compares the CPU's own kernels with torchvision's.

namespace {

using hybrid_rt::operators::composed_deform_conv2d;
using hybrid_rt::operators::deform_conv2d;
using hybrid_rt::operators::DeformableConvolution;

/// Returns the results of a deformable convolution of noise, computed in both ways.
std::tuple<at::Tensor, at::Tensor> both_ways(const DeformableConvolution& o, int64_t height, int64_t width,
                                             double reach) {
  const at::Tensor input = at::randn({2, 8, height, width});
  const at::Tensor weight = at::randn({4, 8 / o.groups, 3, 2});
  const auto [rows, columns] = o.output_size(input, weight);
  at::Tensor offset = at::randn({2, 12 * o.offset_groups, rows, columns}) * reach;
  offset.view(-1)[0] = std::numeric_limits<float>::quiet_NaN();
  const at::Tensor mask = o.use_mask ? at::rand({2, 6 * o.offset_groups, rows, columns}) : at::zeros({2, 1});
  const at::Tensor bias = at::randn({4});
  const auto call = [&](auto function) {
    return function(input, weight, offset, mask, bias, o.stride_h, o.stride_w, o.pad_h, o.pad_w, o.dilation_h,
                    o.dilation_w, o.groups, o.offset_groups, o.use_mask);
  };
  return {call(&deform_conv2d), call(&composed_deform_conv2d)};
}

}  // namespace

TEST_CASE("a deformable convolution composed of torch's operators equals the kernel's") {
  const std::vector<DeformableConvolution> cases{
      {1, 1, 1, 1, 1, 1, 1, 1, false}, {2, 1, 0, 3, 1, 2, 2, 4, true}, {1, 3, 2, 0, 2, 1, 4, 2, true}};
  for (const DeformableConvolution& options : cases) {
    for (const double reach : {0.0, 1.0, 6.0}) {
      CAPTURE(reach);
      const auto [kernel, composed] = both_ways(options, 9, 11, reach);
      CHECK(kernel.sizes() == composed.sizes());
      CHECK(at::allclose(kernel, composed, 1e-4, 1e-5));
    }
  }
}

TEST_CASE("inputs of poolings without CUDA kernels are copied, with one warning") {
  const CapturedLog captured;
  const at::Tensor input = at::rand({1, 8, 9, 9});
  const at::Tensor rois = at::tensor({0.0F, 1.0F, 1.0F, 7.0F, 6.0F}).view({1, 5});
  namespace operators = hybrid_rt::operators;
  for (int i = 0; i < 2; ++i) {
    CHECK(at::equal(std::get<0>(operators::roi_pool_through_cpu(input, rois, 1.0, 2, 2)),
                    std::get<0>(operators::roi_pool(input, rois, 1.0, 2, 2))));
    CHECK(at::equal(std::get<1>(operators::ps_roi_pool_through_cpu(input, rois, 1.0, 2, 2)),
                    std::get<1>(operators::ps_roi_pool(input, rois, 1.0, 2, 2))));
    CHECK(at::equal(std::get<0>(operators::ps_roi_align_through_cpu(input, rois, 1.0, 2, 2, 2)),
                    std::get<0>(operators::ps_roi_align(input, rois, 1.0, 2, 2, 2))));
  }
  CHECK(captured.of(hybrid_rt::LogLevel::kWarning).size() <= 1);
}
