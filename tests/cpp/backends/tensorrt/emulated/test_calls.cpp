// Tests calls of an engine: sizes, profiles, memory, threads, streams, devices.

#include <c10/core/DeviceGuard.h>
#include <c10/core/StreamGuard.h>
#include <doctest/doctest.h>

#include <algorithm>
#include <atomic>
#include <future>
#include <thread>

#include "failure_of.h"
#include "plugin.h"
#include "vendor.h"

namespace {

using hybrid_rt::Engine;
using hybrid_rt::ErrorKind;

/// Runs calls in `threads` threads, each with its own sizes. Returns false if a result differs from the CPU's.
bool run_in_threads(Engine& engine, int threads, int calls, bool has_own_streams) {
  std::atomic<bool> is_right{true};
  std::vector<std::thread> running;
  for (int t = 0; t < threads; ++t) {
    running.emplace_back([&, t] {
      const c10::Stream stream =
          has_own_streams ? emulated::new_torch_stream() : c10::Stream(c10::Stream::DEFAULT, emulated::torch_device());
      const c10::StreamGuard guard(stream);
      for (int call = 0; call < calls; ++call) {
        const at::Tensor x = image({1 + (t + call) % 2, 3, 8 + 2 * (t % 5), 10 + 2 * (call % 3)});
        if (!are_close(engine.run({on_device(x)}), expected_of(x))) is_right = false;
      }
    });
  }
  for (std::thread& thread : running) thread.join();
  return is_right;
}

}  // namespace

TEST_CASE("an engine gives the CPU's results") {
  const Watch watch;
  const auto engine = Artifact().load();
  const at::Tensor x = image({2, 3, 16, 24});
  CHECK(are_close(engine->run({on_device(x)}), expected_of(x)));
  CHECK(contains(engine->description(), StandIn::here().library + " " + StandIn::here().version));
  CHECK(contains(engine->description(), "fp32"));
  CHECK(contains(engine->description(), on_a_gpu() ? "cuda:0 (" : "(Emulated GPU)"));
}

TEST_CASE("one context runs calls of different sizes") {
  const Watch watch;
  const auto engine = Artifact().load();
  const int before = emulated::Vendor::instance().made;
  for (int call = 0; call < 9; ++call) {
    const at::Tensor x = image({1 + call % 3, 3, 8 + 4 * (call % 4), 16});
    CHECK(are_close(engine->run({on_device(x)}), expected_of(x)));
  }
  if (!on_a_gpu()) CHECK(emulated::Vendor::instance().made - before == 1);
}

TEST_CASE("each size runs in the profile that contains it") {
  const Watch watch;
  const auto engine = Artifact(two_profiles()).load();
  for (const auto& sizes :
       std::vector<std::vector<int64_t>>{{1, 3, 8, 8}, {4, 3, 64, 64}, {2, 3, 32, 32}, {3, 3, 32, 40}}) {
    const at::Tensor x = image(sizes);
    CHECK(are_close(engine->run({on_device(x)}), expected_of(x)));
  }
  const auto failure = failure_of([&] { engine->run({on_device(image({1, 3, 16, 64}))}); });
  CHECK(failure.kind() == ErrorKind::kInput);
  CHECK(contains(failure.what(),
                 "expected shapes within one optimisation profile (profile 0: 1..2x3x8..32x8..32; profile 1: "
                 "1..4x3x32..64x32..64), got 1x3x16x64."));
}

TEST_CASE("a view with an unaligned address is copied") {
  const Watch watch;
  const auto engine = Artifact().load();
  const at::Tensor batch = image({3, 3, 10, 10});
  const at::Tensor there = on_device(batch);
  const at::Tensor view = there.narrow(0, 1, 1);
  CHECK(reinterpret_cast<uintptr_t>(view.const_data_ptr()) % 256 != 0);
  const CopiedInputs copied;
  CHECK(are_close(engine->run({view}), expected_of(batch.narrow(0, 1, 1))));
  CHECK(copied.count() == 1);
  CHECK(are_close(engine->run({there}), expected_of(batch)));
  CHECK(copied.count() == 1);
}

TEST_CASE("memory that a caller frees or overwrites after a call does not change its result") {
  const Watch watch;
  emulated::set_delay(3000);
  const auto engine = Artifact().load();
  const at::Tensor x = image({1, 3, 16, 16});
  at::Tensor there = on_device(x);
  const auto first = engine->run({there});
  there.zero_();  // after the run, in its stream
  const auto second = engine->run({on_device(x)});
  there = at::Tensor();
  CHECK(are_close(first, expected_of(x)));
  CHECK(are_close(second, expected_of(x)));
  emulated::set_delay(200);
}

TEST_CASE("sixteen threads call in a stream each") {
  const Watch watch;
  const auto engine = Artifact().load();
  CHECK(run_in_threads(*engine, 16, 6, /*has_own_streams=*/true));
}

TEST_CASE("sixteen threads call in one stream") {
  const Watch watch;
  const auto engine = Artifact().load();
  CHECK(run_in_threads(*engine, 16, 6, /*has_own_streams=*/false));
}

TEST_CASE("all threads that wait for contexts of two profiles get one") {
  const Watch watch;
  emulated::Vendor::instance().slowness = 3000;
  const auto engine = Artifact(two_profiles()).load();
  std::atomic<int> right{0};
  std::vector<std::thread> running;
  for (int t = 0; t < 48; ++t) {  // 16 contexts per profile
    running.emplace_back([&, t] {
      const c10::StreamGuard guard(emulated::new_torch_stream());
      const at::Tensor x = image({1, 3, t % 2 == 0 ? 16 : 40, t % 2 == 0 ? 16 : 40});
      for (int call = 0; call < 2; ++call) {
        if (are_close(engine->run({on_device(x)}), expected_of(x))) ++right;
      }
    });
  }
  for (std::thread& thread : running) thread.join();
  CHECK(right == 96);
  emulated::Vendor::instance().slowness = 0;
}

TEST_CASE("streams share contexts if there are more streams" * emulated_only()) {
  const Watch watch;
  const auto engine = Artifact().load();
  const int before = emulated::Vendor::instance().made;
  std::promise<void> gate;  // closed during the calls, so that each context stays busy
  const std::shared_future<void> opened = gate.get_future().share();
  std::vector<std::vector<at::Tensor>> results;
  std::vector<c10::Stream> streams;
  const at::Tensor x = image({1, 3, 16, 16});
  for (int i = 0; i < 40; ++i) {
    streams.push_back(emulated::new_torch_stream());
    const c10::StreamGuard guard(streams.back());
    const at::Tensor there = on_device(x);
    emulated::enqueue(emulated::stream_of(streams.back()), {"a gate", {}, [opened] { opened.wait(); }});
    results.push_back(engine->run({there}));
  }
  CHECK(emulated::Vendor::instance().made - before == 16);
  gate.set_value();
  for (size_t i = 0; i < results.size(); ++i) {
    const c10::StreamGuard guard(streams[i]);
    CHECK(are_close(results[i], expected_of(x)));
    results[i].clear();
  }
}

TEST_CASE("an empty batch runs as a batch of one and returns no rows") {
  const Watch watch;
  const auto engine = Artifact().load();
  const auto outputs = engine->run({on_device(image({0, 3, 16, 16}))});
  CHECK(outputs[0].sizes() == c10::IntArrayRef({0, 4, 16, 16}));
  CHECK(outputs[1].sizes() == c10::IntArrayRef({0, 4}));
  const auto failure = failure_of([&] { engine->run({on_device(image({1, 3, 0, 16}))}); });
  CHECK(failure.kind() == ErrorKind::kInput);
  CHECK(std::string(failure.what()) ==
        "hybrid_rt[tensorrt]: inputs: expected sizes of at least 1, except in the first dimension, got 0. Omit images "
        "without pixels.");
}

TEST_CASE("an engine runs on the device that it was created for" * emulated_only()) {
  const Watch watch;
  emulated::set_device_count(2);
  const auto engine = Artifact().load(emulated::torch_device(1));
  const auto other = Artifact().load(emulated::torch_device(0));
  const at::Tensor x = image({1, 3, 16, 16});
  CHECK(emulated::current_device() == 0);
  const auto outputs = engine->run({on_device(x, 1)});
  CHECK(emulated::current_device() == 0);
  CHECK(outputs[0].device() == emulated::torch_device(1));
  CHECK(are_close(outputs, expected_of(x)));
  {
    const c10::DeviceGuard guard(emulated::torch_device(1));
    CHECK(are_close(other->run({on_device(x, 0)}), expected_of(x)));
  }
  emulated::set_device_count(1);
}

TEST_CASE("an engine is destroyed after its last call") {
  const Watch watch;
  emulated::set_delay(20000);
  const at::Tensor x = image({1, 3, 16, 16});
  for (int round = 0; round < 3; ++round) {  // like a program that reloads a bundle
    auto engine = Artifact().load();
    const auto outputs = engine->run({on_device(x)});
    engine.reset();
    CHECK(are_close(outputs, expected_of(x)));
  }
  emulated::set_delay(200);
}

TEST_CASE("engines are loaded and dropped while another one runs") {
  const Watch watch;
  const auto other = Artifact().load();
  std::atomic<int> right{0};
  std::vector<std::thread> running;
  for (int t = 0; t < 8; ++t) {
    running.emplace_back([&, t] {
      const c10::StreamGuard guard(emulated::new_torch_stream());
      const at::Tensor x = image({1, 3, 16, 16 + 2 * t});
      for (int round = 0; round < 3; ++round) {
        const auto own = Artifact().load();
        const at::Tensor there = on_device(x);
        const auto first = own->run({there});
        const auto second = other->run({there});
        if (are_close(first, expected_of(x)) && are_close(second, expected_of(x))) ++right;
      }
    });
  }
  for (std::thread& thread : running) thread.join();
  CHECK(right == 24);
}

TEST_CASE("a call that the vendor refuses does not affect earlier calls" * emulated_only()) {
  const Watch watch;
  emulated::set_delay(20000);
  const auto engine = Artifact().load();
  const at::Tensor x = image({1, 3, 16, 16});
  const at::Tensor there = on_device(x);  // this waits, so it must not be between the calls
  const auto before = engine->run({there});
  emulated::Vendor::instance().fail_enqueue = 1;
  const auto failure = failure_of([&] { engine->run({there}); });
  CHECK(failure.kind() == ErrorKind::kBackend);
  CHECK(std::string(failure.what()) == "hybrid_rt[tensorrt]: run: expected success of " + StandIn::here().library +
                                           " " + StandIn::here().version + ", got enqueueV3: asked to fail.");
  CHECK(are_close(before, expected_of(x)));
  CHECK(are_close(engine->run({on_device(x)}), expected_of(x)));
  emulated::set_delay(200);
}

TEST_CASE("an engine can be used after a call that ran out of memory" * emulated_only()) {
  const Watch watch;
  const auto engine = Artifact().load();
  const at::Tensor batch = image({2, 3, 10, 10});
  const at::Tensor view = on_device(batch).narrow(0, 1, 1);  // its copy is the fourth allocation of the call
  int failures = 0;
  for (int n = 1; n <= 5; ++n) {
    emulated::fail_allocation(n);
    try {
      const auto outputs = engine->run({view});
      emulated::fail_allocation(0);
      CHECK(are_close(outputs, expected_of(batch.narrow(0, 1, 1))));
    } catch (const hybrid_rt::Error& error) {
      ++failures;
      CHECK(error.kind() == ErrorKind::kBackend);
      CHECK(contains(error.what(),
                     "run: expected memory on cuda:0 for the outputs and 0 MiB of scratch, got "
                     "CUDA out of memory. Tried to allocate "));
      CHECK(contains(error.what(),
                     " bytes. Pass smaller images or fewer at once, or end other programs. The engine "
                     "remains usable."));
    }
    emulated::fail_allocation(0);
  }
  CHECK(failures == 4);
  CHECK(are_close(engine->run({view}), expected_of(batch.narrow(0, 1, 1))));
}

TEST_CASE("a lost device causes an error, not a crash" * emulated_only()) {
  const Watch watch;
  auto engine = Artifact().load();
  const at::Tensor x = on_device(image({1, 3, 16, 16}));
  engine->run({x});
  emulated::set_lost(0, true);
  const auto failure = failure_of([&] { engine->run({x}); });
  CHECK(failure.kind() == ErrorKind::kBackend);
  CHECK(contains(failure.what(),
                 "run: expected torch's work on cuda:0 to succeed, got CUDA error: unspecified "
                 "launch failure."));
  engine.reset();
  emulated::set_lost(0, false);
}

TEST_CASE("an input that the segment does not read has no address") {
  const Watch watch;
  Artifact artifact;
  auto& inputs = artifact.bindings["inputs"];
  inputs.insert(inputs.begin(), "");
  for (auto& profile : artifact.bindings["profiles"]) profile.insert(profile.begin(), profile[0]);
  artifact.spec.inputs.insert(artifact.spec.inputs.begin(), artifact.spec.inputs[0]);
  const auto engine = artifact.load();
  const at::Tensor x = image({1, 3, 10, 10});
  const at::Tensor ignored = on_device(image({2, 3, 10, 10})).narrow(0, 1, 1);
  CHECK(are_close(engine->run({ignored, on_device(x)}), expected_of(x)));
}
