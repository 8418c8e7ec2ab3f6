// Tests whole bundles on the emulated GPUs: loaded, moved, run and reloaded, with engines that fall back.
// HYBRID_RT_TEST_EMULATED_BUNDLE names the file, which tools/dev/make_emulated_bundle.py writes.

// Before doctest, because its CHECK is the one to use.
#include "hybrid_rt/bundle.h"

#include <c10/core/DeviceGuard.h>
#include <c10/core/StreamGuard.h>
#include <doctest/doctest.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <functional>
#include <mutex>
#include <thread>

#include "captured_log.h"
#include "failure_of.h"
#include "lasting.h"
#include "plugin.h"
#include "temporary.h"
#include "vendor.h"

namespace {

using hybrid_rt::LoadOptions;
using hybrid_rt::LogLevel;
using torch::jit::Module;
using Variants = std::vector<hybrid_rt::VariantCheck>;

constexpr char kGraphs[] = "HYBRID_RT_TENSORRT_CUDA_GRAPHS";

std::string bundle() {
  const char* const path = std::getenv("HYBRID_RT_TEST_EMULATED_BUNDLE");
  REQUIRE_MESSAGE(path != nullptr,
                  "HYBRID_RT_TEST_EMULATED_BUNDLE names no file; tools/dev/make_emulated_bundle.py makes one");
  return path;
}

Module loaded(int device, const std::string& backend = "") {
  return hybrid_rt::load(bundle(), {.device = emulated::torch_device(device), .backend = backend});
}

std::vector<at::Tensor> run(Module& module, const at::Tensor& input) {
  const at::NoGradGuard no_grad;
  const c10::IValue result = module.forward({input});
  std::vector<at::Tensor> tensors;
  for (const c10::IValue& value : result.toTupleRef().elements()) tensors.push_back(value.toTensor());
  return tensors;
}

/// Returns the results of the file's TorchScript variants on the CPU.
std::vector<at::Tensor> on_cpu(const at::Tensor& input) {
  static Module* const module = new Module(hybrid_rt::load(bundle(), {.backend = "torchscript"}));
  return run(*module, input);
}

bool finds_the_same(Module& module, const at::Tensor& input, int device = 0) {
  const std::vector<at::Tensor> found = run(module, on_device(input, device));
  const bool is_there = std::all_of(found.begin(), found.end(), [&](const at::Tensor& tensor) {
    return tensor.device() == emulated::torch_device(device);
  });
  return is_there && found[0].size(0) > 1 && are_close(found, on_cpu(input));
}

size_t chosen_of(const Variants& variants) {
  const auto found = std::find_if(variants.begin(), variants.end(), [](const auto& variant) { return variant.chosen; });
  REQUIRE(found != variants.end());
  return static_cast<size_t>(found - variants.begin());
}

/// The file's order: TensorRT for 9.0 and 8.9, TensorRT-RTX for these, TorchScript.
size_t place_of_tensorrt(int device) {
  return (StandIn::here().library == "tensorrt_rtx" ? 2U : 0U) + (device == 1 ? 0U : 1U);
}

constexpr size_t kTorchScript = 4;

struct TwoDevices : Lasting {
  TwoDevices() { emulated::set_device_count(2); }
  ~TwoDevices() { emulated::set_device_count(1); }
};

/// Runs `work` in threads, each with its own stream.
void in_threads(int count, const std::function<void(int)>& work) {
  std::vector<std::thread> running;
  std::mutex mutex;
  std::string failures;
  for (int t = 0; t < count; ++t) {
    running.emplace_back([&, t] {
      const c10::StreamGuard guard(emulated::new_torch_stream());
      try {
        work(t);
      } catch (const std::exception& error) {
        const std::lock_guard lock(mutex);
        failures += error.what();
      }
    });
  }
  for (std::thread& thread : running) thread.join();
  CHECK(failures == "");
}

}  // namespace

TEST_CASE("a bundle gives the same results on the device as on the CPU") {
  const Watch watch;
  const CapturedLog log;
  Module module = loaded(0);
  const auto engines = hybrid_rt::engines(module);
  REQUIRE(engines.size() == 2);
  CHECK(engines[0].backend == "tensorrt");
  if (!on_a_gpu()) {
    CHECK(chosen_of(engines[0].variants) == place_of_tensorrt(0));
    CHECK(engines[0].description ==
          StandIn::here().library + " " + StandIn::here().version + ", fp32, cuda:0 (Emulated GPU)");
  }
  for (int call = 0; call < 6; ++call) {
    CHECK(finds_the_same(module, image({1 + call % 3, 3, 16 + 8 * (call % 2), 24 + 4 * call})));
  }
}

TEST_CASE("an engine that the vendor refuses falls back while the other one runs" * emulated_only()) {
  const Watch watch;
  const CapturedLog log;
  Module module = loaded(0);
  const auto classes = hybrid_rt::engines(module)[1];
  CHECK(chosen_of(classes.variants) == kTorchScript);
  const std::string refusal = classes.variants[place_of_tensorrt(0)].refusal;
  CHECK(contains(refusal, "hybrid_rt[tensorrt]: artifact: expected success of "));
  CHECK(contains(refusal, "magic tag does not match"));
  CHECK(contains(classes.variants[place_of_tensorrt(1)].refusal,
                 "it was built for GPUs of compute capability 9.0, but Emulated GPU has capability 8.9"));
  CHECK(log.of(LogLevel::kWarning).size() == 1);
  CHECK(contains(log.of(LogLevel::kWarning).front(), "engine 'classes': tensorrt (fp32) failed to load: "));
  const auto failure = failure_of([] {
    hybrid_rt::load(bundle(), {.device = emulated::torch_device(), .backend = "tensorrt:fp32@8.9", .strict = true});
  });
  // Among the two variants for this GPU, TensorRT's comes first.
  const std::string engine = StandIn::here().library == "tensorrt" ? "classes" : "backbone";
  CHECK(
      contains(failure.what(), "engine '" + engine + "', strict: expected its first variant, tensorrt (fp32), to run"));
}

TEST_CASE("two different GPUs each run the engine that was built for them" * emulated_only()) {
  const Watch watch;
  const TwoDevices two;
  const CapturedLog log;
  Module first = loaded(0);
  Module second = loaded(1);
  for (const auto& engine : hybrid_rt::engines(second)) CHECK(chosen_of(engine.variants) == place_of_tensorrt(1));
  CHECK(chosen_of(hybrid_rt::engines(first)[0].variants) == place_of_tensorrt(0));
  std::atomic<int> right{0};
  in_threads(4, [&](int t) {
    for (int call = 0; call < 3; ++call) {
      if (finds_the_same(t % 2 == 0 ? first : second, image({1, 3, 16, 16 + 4 * call}), t % 2)) ++right;
    }
  });
  CHECK(right == 12);
}

TEST_CASE("a bundle that was loaded on the CPU can move and creates its engines at the first call" * emulated_only()) {
  const Watch watch;
  const TwoDevices two;
  const CapturedLog log;
  Module module = hybrid_rt::load(bundle());
  for (const auto& engine : hybrid_rt::engines(module)) CHECK(engine.backend == "torchscript");
  hybrid_rt::move_to(module, emulated::torch_device(1));
  const at::Tensor x = image({2, 3, 24, 16});
  CHECK(finds_the_same(module, x, 1));
  for (const auto& engine : hybrid_rt::engines(module)) CHECK(chosen_of(engine.variants) == place_of_tensorrt(1));
  Module other = hybrid_rt::load(bundle());
  // Tensors that its head creates without an input must be moved too.
  hybrid_rt::move_to(other, emulated::torch_device(1));
  hybrid_rt::move_to(other, emulated::torch_device(0));
  CHECK(finds_the_same(other, x));
  CHECK(chosen_of(hybrid_rt::engines(other)[0].variants) == place_of_tensorrt(0));
}

TEST_CASE("sixteen threads run a bundle while others load and drop it, in each mode of graphs") {
  const Watch watch;
  const CapturedLog log;
  for (const char* mode : {"off", "copy", "static"}) {
    CAPTURE(mode);
    const TemporaryVariable graphs(kGraphs, mode);
    Module module = loaded(0);
    CHECK(contains(hybrid_rt::engines(module)[0].description, mode == std::string("off") ? ")" : mode));
    std::atomic<int> right{0};
    in_threads(16, [&](int t) {
      for (int call = 0; call < 2; ++call) {
        const at::Tensor x = image({1, 3, 16, 16 + 4 * ((t + call) % 5)});
        if (t % 4 == 0) {
          Module again = loaded(0, call == 0 ? "torchscript" : "");
          if (finds_the_same(again, x)) ++right;
        } else if (finds_the_same(module, x)) {
          ++right;
        }
      }
    });
    CHECK(right == 32);
  }
}

TEST_CASE("an engine that fails during warm-up falls back" * emulated_only()) {
  const Watch watch;
  const CapturedLog log;
  emulated::Vendor::instance().refuses_contexts = true;
  const LoadOptions options{.device = emulated::torch_device(), .warm_up = {{16, 16}}};
  {
    Module module = hybrid_rt::load(bundle(), options);
    emulated::Vendor::instance().refuses_contexts = false;
    for (const auto& engine : hybrid_rt::engines(module)) CHECK(chosen_of(engine.variants) == kTorchScript);
    CHECK(contains(hybrid_rt::engines(module)[0].variants[place_of_tensorrt(0)].refusal,
                   "got createExecutionContext: out of memory."));
    CHECK(finds_the_same(module, image({1, 3, 16, 16})));
  }
  Module module = hybrid_rt::load(bundle(), options);
  CHECK(hybrid_rt::engines(module)[0].backend == "tensorrt");
}

TEST_CASE("a bundle fails on a device without free memory and can be used again" * emulated_only()) {
  const Watch watch;
  const CapturedLog log;
  Module module = loaded(0);
  const at::Tensor x = image({1, 3, 16, 16});
  CHECK(finds_the_same(module, x));
  const auto works = [](const std::function<void()>& work) {
    try {
      work();
      return true;
    } catch (const std::exception& error) {
      CHECK(contains(error.what(), "out of memory"));
      return false;
    }
  };
  int failures = 0;
  const at::Tensor there = on_device(x);
  for (int n = 1; n < 200; ++n) {
    emulated::fail_allocation(n);
    const bool is_over = works([&] { run(module, there); });
    emulated::fail_allocation(0);
    if (is_over) break;
    ++failures;
  }
  CHECK(failures > 3);
  CHECK(failures < 199);
  CHECK(finds_the_same(module, x));
  for (int n : {1, 2, 4, 8}) {
    emulated::fail_allocation(n);
    works([] { loaded(0); });
    emulated::fail_allocation(0);
  }
  CHECK(finds_the_same(module, x));
}

TEST_CASE("a bundle on a lost device throws an error" * emulated_only()) {
  const Watch watch;
  const CapturedLog log;
  Module module = loaded(0);
  CHECK(finds_the_same(module, image({1, 3, 16, 16})));
  const at::Tensor there = on_device(image({1, 3, 16, 16}));
  emulated::set_lost(0, true);
  std::string text;
  try {
    run(module, there);
  } catch (const std::exception& error) {
    text = error.what();
  }
  CHECK(contains(text, "run: expected torch's work on cuda:0 to succeed, got CUDA error: unspecified launch failure"));
  CHECK_THROWS_AS(loaded(0), std::exception);
  emulated::set_lost(0, false);
  CHECK(finds_the_same(module, image({1, 3, 16, 16})));
}
