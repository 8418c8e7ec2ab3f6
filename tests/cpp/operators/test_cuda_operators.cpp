#include <ATen/core/Tensor.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/equal.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/zeros.h>
#include <doctest/doctest.h>

#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "captured_log.h"
#include "failure_of.h"
#include "hybrid_rt/backends.h"
#include "operators/cuda_operators.h"
#include "temporary.h"

// Tests the parts of the CUDA operators that need no GPU. tests/python/operators/test_head_operators.py compares their
// results.

namespace {

using hybrid_rt::Error;
using hybrid_rt::ErrorKind;
using hybrid_rt::LogLevel;
using hybrid_rt::operators::CudaOperators;

CudaOperators operators_of(int abi_version, const char* torch_version) {
  return {abi_version, torch_version, &hybrid_rt::operators::nms_through_cpu,
          &hybrid_rt::operators::roi_align_through_cpu};
}

/// Returns the only warning of opening the library at `path`.
std::string warning_of(const std::string& path) {
  const CapturedLog captured;
  CHECK(hybrid_rt::operators::open_cuda_operators(path) == nullptr);
  const std::vector<std::string> warnings = captured.of(LogLevel::kWarning);
  REQUIRE(warnings.size() == 1);
  return warnings[0];
}

const char* const kConsequence =
    "): both run on the CPU, with copies there and back. Install a CUDA toolkit (nvcc) of torch's major version and "
    "build hybrid_rt again.";

bool is_built() { return std::filesystem::exists(hybrid_rt::operators::cuda_operators_path()); }

}  // namespace

TEST_CASE("the operators take CUDA tensors") {
  for (const char* name :
       {"hybrid_rt::nms", "hybrid_rt::roi_align", "hybrid_rt::batched_nms", "hybrid_rt::ssd_detections",
        "hybrid_rt::sigmoid_topk", "hybrid_rt::centered_sigmoid_topk", "hybrid_rt::class_probabilities",
        "hybrid_rt::box_levels", "hybrid_rt::multiscale_roi_align"}) {
    const auto handle = c10::Dispatcher::singleton().findSchemaOrThrow(name, "");
    CHECK(handle.hasKernelForDispatchKey(c10::DispatchKey::CUDA));
  }
}

TEST_CASE("without CUDA kernels, the CPU kernels compute the results") {
  const at::Tensor boxes = at::tensor({0., 0., 10., 10., 1., 1., 11., 11., 20., 20., 30., 30.}).reshape({3, 4});
  const at::Tensor kept = hybrid_rt::operators::nms_through_cpu(boxes, at::tensor({.5, .9, .7}), 0.5);
  CHECK(at::equal(kept, at::tensor({1, 2}, at::kLong)));

  const at::Tensor ramp = at::arange(16, at::kFloat).reshape({1, 1, 4, 4});
  const at::Tensor roi = at::tensor({0.f, 0.f, 0.f, 2.f, 2.f}).reshape({1, 5});
  const at::Tensor pooled = hybrid_rt::operators::roi_align_through_cpu(ramp, roi, 1.0, 1, 1, 1, false);
  CHECK(pooled.item<float>() == 5.f);
}

TEST_CASE("tensors on different devices are refused before they are copied") {
  const at::TensorOptions elsewhere(at::kMeta);
  const Error nms =
      failure_of([&] { hybrid_rt::operators::nms_through_cpu(at::zeros({1, 4}), at::zeros({1}, elsewhere), 0.5); });
  CHECK(nms.kind() == ErrorKind::kInput);
  CHECK(std::string(nms.what()) ==
        "hybrid_rt[operators]: nms: expected dets and scores on one device, got cpu and meta. "
        "Move one of them with .to().");
  const Error roi_align = failure_of([&] {
    hybrid_rt::operators::roi_align_through_cpu(at::zeros({1, 1, 1, 1}, elsewhere), at::zeros({1, 5}), 1., 1, 1, 1,
                                                false);
  });
  CHECK(std::string(roi_align.what()) ==
        "hybrid_rt[operators]: roi_align: expected input and rois on one device, got meta and cpu. "
        "Move one of them with .to().");
}

TEST_CASE("CUDA operators of another version are refused") {
  using hybrid_rt::operators::kCudaOperatorsAbiVersion;
  using hybrid_rt::operators::refusal_of;
  CHECK(refusal_of(operators_of(kCudaOperatorsAbiVersion, HYBRID_RT_TORCH_VERSION)).empty());
  CHECK(refusal_of(operators_of(kCudaOperatorsAbiVersion + 1, HYBRID_RT_TORCH_VERSION)) ==
        "they were built for operator interface 2, this is hybrid_rt's 1");
  CHECK(refusal_of(operators_of(kCudaOperatorsAbiVersion, "2.0")) ==
        "they were built with torch 2.0, this is torch " HYBRID_RT_TORCH_VERSION);
  CHECK(warning_of(HYBRID_RT_TEST_PLUGINS "/cuda_operators_fixture.so") ==
        std::string("the CUDA kernels of nms and roi_align can't be used (they were built for operator interface 0, "
                    "this is hybrid_rt's 1") +
            kConsequence);
}

TEST_CASE("a missing or invalid library of CUDA operators causes one warning with the remedy") {
  const TemporaryDirectory directory;
  const std::string absent = directory.file("absent.so");
  CHECK(warning_of(absent) ==
        "the CUDA kernels of nms and roi_align can't be used (there is no " + absent + kConsequence);

  const std::string text = directory.file("text.so");
  std::ofstream(text) << "no library";
  CHECK(contains(warning_of(text), "can't be used (" + text + ": "));

  const std::string other = HYBRID_RT_TEST_PLUGINS "/libhybrid_rt_fixture.so";
  CHECK(contains(warning_of(other), "can't be used (" + other + " exports no hybrid_rt_cuda_operators): "));
}

TEST_CASE("the CUDA operators are next to the library and are not a backend") {
  const std::filesystem::path path = hybrid_rt::operators::cuda_operators_path();
  CHECK(path.filename() == "hybrid_rt_cuda_operators.so");
  CHECK(std::filesystem::exists(path.parent_path() / "libhybrid_rt.so"));
  for (const hybrid_rt::BackendInfo& info : hybrid_rt::backends()) {
    CHECK_FALSE(contains(info.name, "cuda"));
  }
}

TEST_CASE("the CUDA operators can be opened without a GPU" *
          doctest::description("skipped where hybrid_rt was built without nvcc") * doctest::skip(!is_built())) {
  const CapturedLog captured;
  const CudaOperators* const operators =
      hybrid_rt::operators::open_cuda_operators(hybrid_rt::operators::cuda_operators_path());
  CHECK(captured.of(LogLevel::kWarning) == std::vector<std::string>{});
  REQUIRE(operators != nullptr);
  CHECK(hybrid_rt::operators::refusal_of(*operators).empty());
  CHECK((operators->nms != nullptr && operators->roi_align != nullptr));
}
