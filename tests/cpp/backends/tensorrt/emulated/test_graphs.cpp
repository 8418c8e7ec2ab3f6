// Tests calls that are recorded as CUDA graphs.

#include <c10/core/StreamGuard.h>
#include <doctest/doctest.h>

#include <atomic>
#include <thread>
#include <tuple>

#include "captured_log.h"
#include "failure_of.h"
#include "plugin.h"
#include "temporary.h"
#include "vendor.h"

namespace {

using hybrid_rt::Engine;
using hybrid_rt::LogLevel;

constexpr char kMemory[] = "HYBRID_RT_TENSORRT_GRAPH_MEMORY";

std::shared_ptr<Engine> engine_with(const char* mode, const std::vector<Sizes>& profiles = one_profile()) {
  const TemporaryVariable variable("HYBRID_RT_TENSORRT_CUDA_GRAPHS", mode);
  return Artifact(profiles).load();
}

size_t launches_of(Engine& engine, const at::Tensor& input) {
  const size_t before = emulated::launches();
  engine.run({input});
  return emulated::launches() - before;
}

}  // namespace

TEST_CASE("a recorded call reads the caller's new values") {
  for (const char* mode : {"copy", "static"}) {
    CAPTURE(mode);
    const Watch watch;
    const auto engine = engine_with(mode);
    CHECK(contains(engine->description(), std::string("CUDA graphs: ") + mode));
    at::Tensor there = on_device(image({1, 3, 16, 16}));
    const int before = emulated::Vendor::instance().enqueues;
    for (int call = 0; call < 5; ++call) {
      const at::Tensor x = image({1, 3, 16, 16});
      there.copy_(x);
      CHECK(are_close(engine->run({there}), expected_of(x)));
    }
    if (!on_a_gpu())
      CHECK(emulated::Vendor::instance().enqueues - before == 2);  // one for initialisation, one for recording
  }
}

TEST_CASE("callers own the results of recorded calls") {
  const Watch watch;
  const auto engine = engine_with("copy");
  const at::Tensor x = image({1, 3, 16, 16});
  const at::Tensor y = image({1, 3, 16, 16});
  const auto first = engine->run({on_device(x)});
  const auto second = engine->run({on_device(y)});
  CHECK(are_close(first, expected_of(x)));
  CHECK(are_close(second, expected_of(y)));
}

TEST_CASE("there is one static graph per address, and an unaligned view is copied") {
  const Watch watch;
  const auto engine = engine_with("static");
  const at::Tensor batch = image({3, 3, 10, 10});
  const at::Tensor there = on_device(batch);
  const CopiedInputs copied;
  for (int round = 0; round < 2; ++round) {
    for (int64_t i = 0; i < 3; ++i) {
      CHECK(are_close(engine->run({there.narrow(0, i, 1)}), expected_of(batch.narrow(0, i, 1))));
    }
  }
  CHECK(copied.count() == 4);  // at 1200 and 2400 bytes from the start
}

TEST_CASE("the least recently used graph is destroyed after its last launch") {
  const Watch watch;
  emulated::set_delay(5000);
  const TemporaryVariable memory(kMemory, "24M");  // a graph counts as 4 MiB plus its tensors
  const auto engine = engine_with("copy");
  std::vector<std::pair<at::Tensor, std::vector<at::Tensor>>> results;
  for (int round = 0; round < 2; ++round) {
    for (int64_t i = 0; i < 20; ++i) {
      const at::Tensor x = image({1, 3, 8 + 2 * i, 16});
      results.emplace_back(x, engine->run({on_device(x)}));
    }
  }
  if (!on_a_gpu()) CHECK(emulated::live_graphs() == 5);
  for (const auto& [x, outputs] : results) CHECK(are_close(outputs, expected_of(x)));
  emulated::set_delay(200);
}

TEST_CASE("the memory of destroyed graphs is freed") {
  const Watch watch;
  const TemporaryVariable memory(kMemory, "5M");
  const auto engine = engine_with("static");
  const at::Tensor x = image({4, 3, 64, 64});
  std::vector<at::Tensor> inputs;  // each at its own address
  for (int i = 0; i < 4; ++i) inputs.push_back(on_device(x));
  std::vector<size_t> bytes;
  for (const at::Tensor& input : inputs) {
    CHECK(are_close(engine->run({input}), expected_of(x)));
    emulated::synchronize_all();
    bytes.push_back(emulated::live_bytes());
    if (!on_a_gpu()) CHECK(emulated::live_graphs() == 1);
  }
  CHECK(bytes == std::vector<size_t>(4, bytes.front()));
}

TEST_CASE("a call that needs more memory than graphs may take runs without a graph" * emulated_only()) {
  const Watch watch;
  const CapturedLog log;
  const TemporaryVariable memory(kMemory, "1M");
  const auto engine = engine_with("copy");
  const at::Tensor x = image({1, 3, 16, 16});
  const at::Tensor there = on_device(x);
  for (int call = 0; call < 2; ++call) CHECK(are_close(engine->run({there}), expected_of(x)));
  CHECK(launches_of(*engine, there) == 0);
  CHECK(log.of(LogLevel::kWarning) ==
        std::vector<std::string>{"tensorrt: a call can't be recorded as a CUDA graph (it takes 4 MiB, "
                                 "HYBRID_RT_TENSORRT_GRAPH_MEMORY allows 1 MiB); it runs without"});
}

TEST_CASE("the memory limit of graphs is a number of bytes, with or without a unit") {
  const TemporaryVariable mode("HYBRID_RT_TENSORRT_CUDA_GRAPHS", "copy");
  const auto settings = [](const char* text) {
    const TemporaryVariable memory(kMemory, text);
    return plugin().settings();
  };
  CHECK(settings(nullptr) == "copy, 1024 MiB");
  CHECK(settings("") == "copy, 1024 MiB");
  CHECK(settings("512M") == "copy, 512 MiB");
  CHECK(settings("2G") == "copy, 2048 MiB");
  CHECK(settings("1048576") == "copy, 1 MiB");
  CHECK(settings("2048K") == "copy, 2 MiB");
  CHECK(settings("1T") == "copy, 1048576 MiB");
  for (const char* text : {"0", "-1", "much", "5X", "1MB", " 1M", "99999999T", "99999999999999999999"}) {
    CAPTURE(text);
    CHECK(settings(text) ==
          "hybrid_rt[tensorrt]: HYBRID_RT_TENSORRT_GRAPH_MEMORY: expected a number of bytes, or one with K, M, G or T: "
          "512M, got '" +
              std::string(text) + "'. Set such a number, or unset it: 1G.");
  }
  const TemporaryVariable memory(kMemory, "much");
  CHECK(contains(plugin().refusal(Artifact().spec, {}).value_or(""), "GRAPH_MEMORY: expected a number of bytes"));
}

TEST_CASE("many threads and streams run recorded calls") {
  for (const char* mode : {"copy", "static"}) {
    CAPTURE(mode);
    const Watch watch;
    const auto engine = engine_with(mode);
    std::atomic<bool> is_right{true};
    std::vector<std::thread> running;
    for (int t = 0; t < 16; ++t) {
      running.emplace_back([&, t] {
        const c10::StreamGuard guard(emulated::new_torch_stream());
        at::Tensor there = on_device(image({1, 3, 8 + 2 * (t % 4), 16}));
        for (int call = 0; call < 5; ++call) {
          const at::Tensor x = image(there.sizes().vec());
          there.copy_(x);
          if (!are_close(engine->run({there}), expected_of(x))) is_right = false;
        }
      });
    }
    for (std::thread& thread : running) thread.join();
    CHECK(is_right);
  }
}

TEST_CASE("graphs are dropped while other threads launch graphs") {
  for (const char* mode : {"copy", "static"}) {
    CAPTURE(mode);
    const Watch watch;
    const TemporaryVariable memory(kMemory, "9M");  // room for two of them
    const auto engine = engine_with(mode, two_profiles());
    std::atomic<int> right{0};
    std::vector<std::thread> running;
    for (int t = 0; t < 16; ++t) {
      running.emplace_back([&, t] {
        const c10::StreamGuard guard(emulated::new_torch_stream());
        for (int call = 0; call < 4; ++call) {
          const at::Tensor x =
              image({1, 3, (t + call) % 3 == 0 ? 32 : 16, 16 + 20 * ((t + call) % 3 == 0) + 2 * (t % 4)});
          if (are_close(engine->run({on_device(x)}), expected_of(x))) ++right;
        }
      });
    }
    for (std::thread& thread : running) thread.join();
    CHECK(right == 64);
    if (!on_a_gpu()) CHECK(emulated::live_graphs() <= 2);
  }
}

TEST_CASE("an engine is destroyed after its last recorded call") {
  for (const char* mode : {"copy", "static"}) {
    CAPTURE(mode);
    const Watch watch;
    emulated::set_delay(20000);
    const at::Tensor x = image({1, 3, 16, 16});
    auto engine = engine_with(mode);
    const auto outputs = engine->run({on_device(x)});
    engine.reset();
    CHECK(are_close(outputs, expected_of(x)));
    emulated::set_delay(200);
  }
}

TEST_CASE("an invalidated capture causes a warning, and the call runs without a graph" * emulated_only()) {
  const Watch watch;
  const CapturedLog log;
  const auto engine = engine_with("copy");
  const at::Tensor x = image({1, 3, 16, 16});
  emulated::invalidate_next_capture();
  for (int call = 0; call < 3; ++call) CHECK(are_close(engine->run({on_device(x)}), expected_of(x)));
  CHECK(log.of(LogLevel::kWarning) ==
        std::vector<std::string>{
            "tensorrt: a call can't be recorded as a CUDA graph (operation failed due to a previous error during "
            "capture); it runs without"});
  CHECK(launches_of(*engine, on_device(image({1, 3, 16, 24}))) == 1);  // another size is recorded again
}

TEST_CASE("an unsupported graph operation causes a warning, and the call runs without a graph" * emulated_only()) {
  const std::vector<std::tuple<const char*, int, const char*>> failures = {
      {"cuStreamCreate", emulated::kOutOfMemory, "out of memory"},
      {"cuStreamBeginCapture", emulated::kCaptureUnsupported, "operation not permitted when stream is capturing"},
      {"cuGraphInstantiate", emulated::kInvalidValue, "invalid argument"},
      {"cuGraphInstantiate", 9999, "CUDA error 9999"},
  };
  for (const auto& [function, result, text] : failures) {
    CAPTURE(function);
    const Watch watch;
    const CapturedLog log;
    const auto engine = engine_with("copy");
    const at::Tensor x = image({1, 3, 16, 16});
    emulated::fail_driver(function, result);
    for (int call = 0; call < 2; ++call) CHECK(are_close(engine->run({on_device(x)}), expected_of(x)));
    CHECK(log.of(LogLevel::kWarning) ==
          std::vector<std::string>{std::string("tensorrt: a call can't be recorded as a CUDA graph (") + text +
                                   "); it runs without"});
    CHECK(emulated::live_graphs() == 0);
  }
}

TEST_CASE("a graph whose launch fails causes an error and can be launched again" * emulated_only()) {
  const Watch watch;
  const auto engine = engine_with("static");
  const at::Tensor x = image({1, 3, 16, 16});
  const at::Tensor there = on_device(x);
  CHECK(are_close(engine->run({there}), expected_of(x)));
  emulated::fail_driver("cuGraphLaunch", emulated::kOutOfMemory);
  CHECK(std::string(failure_of([&] { engine->run({there}); }).what()) ==
        "hybrid_rt[tensorrt]: run, CUDA graph: expected to launch it, got out of memory. Set "
        "HYBRID_RT_TENSORRT_CUDA_GRAPHS=off to run without graphs.");
  CHECK(launches_of(*engine, there) == 1);
  CHECK(are_close(engine->run({there}), expected_of(x)));
}

TEST_CASE("a call that the vendor refuses to record runs without a graph" * emulated_only()) {
  const Watch watch;
  const CapturedLog log;
  const auto engine = engine_with("copy");
  const at::Tensor x = image({1, 3, 16, 16});
  emulated::Vendor::instance().fail_enqueue = 2;
  CHECK(are_close(engine->run({on_device(x)}), expected_of(x)));
  CHECK(
      log.of(LogLevel::kWarning) ==
      std::vector<std::string>{"tensorrt: a call can't be recorded as a CUDA graph (enqueueV3: asked to fail); it runs "
                               "without"});
}

TEST_CASE("a call that fails during preparation for recording is retried" * emulated_only()) {
  for (const char* mode : {"copy", "static"}) {
    CAPTURE(mode);
    const Watch watch;
    emulated::set_delay(5000);
    const auto engine = engine_with(mode);
    const at::Tensor x = image({1, 3, 16, 16});
    const at::Tensor there = on_device(x);
    emulated::Vendor::instance().fail_enqueue = 1;
    CHECK(contains(failure_of([&] { engine->run({there}); }).what(), "enqueueV3: asked to fail"));
    CHECK(launches_of(*engine, there) == 1);
    CHECK(are_close(engine->run({there}), expected_of(x)));
    emulated::set_delay(200);
  }
}

TEST_CASE("an engine can be used after a recorded call that ran out of memory" * emulated_only()) {
  for (const char* mode : {"copy", "static"}) {
    CAPTURE(mode);
    for (int n = 1; n <= 7; ++n) {
      CAPTURE(n);
      const Watch watch;
      emulated::set_delay(5000);
      const auto engine = engine_with(mode);
      const at::Tensor x = image({1, 3, 16, 16});
      const at::Tensor there = on_device(x);
      bool has_failed = false;
      emulated::fail_allocation(n);
      try {
        engine->run({there});
      } catch (const hybrid_rt::Error& error) {
        has_failed = true;
        CHECK(contains(error.what(), "hybrid_rt[tensorrt]: run: expected memory on cuda:0 for "));
        CHECK(contains(error.what(), ", got CUDA out of memory. Tried to allocate "));
        CHECK(contains(error.what(), "The engine remains usable."));
      }
      emulated::fail_allocation(0);
      CHECK(has_failed == (n <= (mode == std::string("copy") ? 6 : 5)));
      {
        const c10::StreamGuard guard(emulated::new_torch_stream());
        const at::Tensor elsewhere = on_device(x);
        CHECK(are_close(engine->run({elsewhere}), expected_of(x)));
      }
      CHECK(launches_of(*engine, there) == 1);
      emulated::set_delay(200);
    }
  }
}

TEST_CASE("a lost device causes an error in a recorded call too" * emulated_only()) {
  const Watch watch;
  auto engine = engine_with("copy");
  const at::Tensor x = on_device(image({1, 3, 16, 16}));
  engine->run({x});
  emulated::set_lost(0, true);
  CHECK(std::string(failure_of([&] { engine->run({x}); }).what()) ==
        "hybrid_rt[tensorrt]: run: expected torch's work on cuda:0 to succeed, got CUDA error: unspecified launch "
        "failure.");
  engine.reset();
  emulated::set_lost(0, false);
}

TEST_CASE("a stream that another recording uses is refused" * emulated_only()) {
  const Watch watch;
  const auto engine = Artifact().load();
  const at::Tensor x = on_device(image({1, 3, 16, 16}));
  const c10::Stream stream = emulated::new_torch_stream();
  const c10::StreamGuard guard(stream);
  REQUIRE(emulated::begin_capture(emulated::stream_of(stream)) == emulated::kSuccess);
  const auto failure = failure_of([&] { engine->run({x}); });
  emulated::Graph* graph = nullptr;
  CHECK(emulated::end_capture(emulated::stream_of(stream), &graph) == emulated::kSuccess);
  emulated::destroy(graph);
  CHECK(failure.kind() == hybrid_rt::ErrorKind::kInput);
  CHECK(contains(failure.what(), "stream: expected one that is not being recorded, got one that is being recorded"));
}
