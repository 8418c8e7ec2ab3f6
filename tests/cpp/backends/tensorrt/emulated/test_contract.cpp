// Shows that the emulated GPU and the stand-in for TensorRT notice broken rules: each case breaks one rule of
// NvInferRuntime.h or of CUDA, like a faulty plug-in would, and everything else is correct.

#include <NvInferRuntime.h>
#include <dlfcn.h>
#include <doctest/doctest.h>

#include <array>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <nlohmann/json.hpp>
#include <thread>
#include <vector>

#include "gpu.h"
#include "vendor.h"

namespace {

using nlohmann::json;
using Strategy = nvinfer1::ExecutionContextAllocationStrategy;

constexpr size_t kImageBytes = 3 * 8 * 8 * sizeof(float);
constexpr size_t kResult = 3 * 16 * 16 * sizeof(float);

class SilentLogger : public nvinfer1::ILogger {
  void log(Severity, const char*) noexcept override {}
};

std::string plan() {
  const json range = {{"min", {1, 3, 8, 8}}, {"max", {2, 3, 8, 8}}};
  const json scale = {{"kind", "scale"}, {"inputs", {"x"}}, {"output", "a"}, {"weights", {2.0}}, {"bias", {1.0}}};
  const json upsample = {{"kind", "upsample"}, {"inputs", {"a"}}, {"output", "y"}};
  return json{{"version", "1.2.3"},
              {"host_code", true},
              {"inputs", {{{"name", "x"}, {"shape", {-1, 3, 8, 8}}}}},
              {"outputs", {{{"name", "y"}, {"shape", {-1, 3, 16, 16}}}}},
              {"layers", {scale, upsample}},
              {"profiles", {{{"x", range}}, {{"x", range}}}}}
      .dump();
}

nvinfer1::IRuntime* make_runtime(nvinfer1::ILogger& logger) {
  static void* const handle = dlopen(std::getenv("HYBRID_RT_TENSORRT_LIBRARY"), RTLD_NOW | RTLD_LOCAL);
  REQUIRE(handle != nullptr);
  const auto version = reinterpret_cast<int32_t (*)()>(dlsym(handle, "getInferLibVersion"));
  const auto create = reinterpret_cast<void* (*)(void*, int32_t)>(dlsym(handle, "createInferRuntime_INTERNAL"));
  return static_cast<nvinfer1::IRuntime*>(create(&logger, version()));
}

/// Calls according to the contract, step by step, so that a test can omit or replace a step.
struct Caller {
  SilentLogger logger;
  std::unique_ptr<nvinfer1::IRuntime> runtime{make_runtime(logger)};
  std::unique_ptr<nvinfer1::ICudaEngine> engine;
  std::unique_ptr<nvinfer1::IExecutionContext> context;
  emulated::Stream* stream = emulated::make_stream(0);
  void* x = emulated::allocate(kImageBytes, stream);
  void* y = emulated::allocate(kResult, stream);
  void* scratch = nullptr;
  size_t scratch_size = 0;

  Caller() {
    emulated::synchronize_all();
    emulated::take_breaches();
    emulated::set_delay(2000);
    runtime->setEngineHostCodeAllowed(true);
    const std::string bytes = plan();
    engine.reset(runtime->deserializeCudaEngine(bytes.data(), bytes.size()));
    REQUIRE(engine != nullptr);
    context.reset(engine->createExecutionContext(Strategy::kUSER_MANAGED));
    REQUIRE(context != nullptr);
  }
  Caller(const Caller&) = delete;
  Caller& operator=(const Caller&) = delete;
  ~Caller() {
    emulated::synchronize_all();
    for (void* const data : {x, y, scratch}) {
      if (data != nullptr) emulated::release(data);
    }
    emulated::synchronize_all();
  }

  static void* handle(emulated::Stream* of) { return emulated::handle_of(of); }
  bool set_profile() { return set_profile(*context, stream); }
  static bool set_profile(nvinfer1::IExecutionContext& of, emulated::Stream* into) {
    return of.setOptimizationProfileAsync(0, static_cast<cudaStream_t>(handle(into)));
  }
  bool set_shape(int64_t batch = 1) { return context->setInputShape("x", nvinfer1::Dims4(batch, 3, 8, 8)); }
  void set_scratch() {
    scratch_size = context->updateDeviceMemorySizeForShapes();
    scratch = emulated::allocate(scratch_size, stream);
    context->setDeviceMemoryV2(scratch, static_cast<int64_t>(scratch_size));
  }
  void set_addresses() {
    context->setInputTensorAddress("x", x);
    context->setTensorAddress("y", y);
  }
  void prepare() {
    set_profile();
    set_shape();
    set_scratch();
    set_addresses();
  }
  bool enqueue() { return enqueue(stream); }
  bool enqueue(emulated::Stream* into) { return context->enqueueV3(static_cast<cudaStream_t>(handle(into))); }

  /// Writes into memory like another plug-in would.
  static void overwrite(void* data, size_t size, emulated::Stream* into) {
    emulated::enqueue(into, {"a copy", {emulated::use_of(data, size, true, 0, "a copy")}, [data, size] {
                               std::memset(data, 0, size);
                             }});
  }
};

/// Returns the breaches so far, one per line, without numbers of streams and blocks.
std::string breaches() {
  emulated::synchronize_all();
  std::string text;
  for (const std::string& breach : emulated::take_breaches()) {
    text += text.empty() ? "" : "\n";
    for (const char c : breach) {
      if (c < '0' || c > '9') text += c;
    }
  }
  return text;
}

}  // namespace

TEST_CASE("correct use causes no report") {
  Caller caller;
  caller.prepare();
  std::memset(caller.x, 0, kImageBytes);
  CHECK(caller.enqueue());
  emulated::Event done;
  done.record(caller.stream);
  emulated::Stream* const other = emulated::make_stream(0);
  done.block(other);
  Caller::overwrite(caller.x, kImageBytes, other);
  done.record(other);
  done.block(caller.stream);
  CHECK(caller.enqueue());
  emulated::synchronize(caller.stream);
  CHECK(static_cast<float*>(caller.y)[0] == 1.0F);
  caller.context.reset();
  caller.engine.reset();
  caller.runtime.reset();
  CHECK(breaches() == "");
}

TEST_CASE("rules of one call") {
  Caller caller;
  SUBCASE("an address that is not aligned") {
    caller.prepare();
    CHECK_FALSE(caller.context->setInputTensorAddress("x", static_cast<char*>(caller.x) + 128));
    CHECK(breaches() == "the address of x is not aligned");
  }
  SUBCASE("scratch memory that is not aligned") {
    caller.prepare();
    caller.context->setDeviceMemoryV2(static_cast<char*>(caller.scratch) + 64, 64);
    CHECK(breaches() == "the scratch memory is not aligned");
  }
  SUBCASE("an output without an address") {
    caller.prepare();
    caller.context->setTensorAddress("y", nullptr);
    CHECK_FALSE(caller.enqueue());
    CHECK(breaches() == "a run is enqueued before the address of y is set");
  }
  SUBCASE("a shape outside of the profile") {
    caller.prepare();
    CHECK_FALSE(caller.set_shape(3));
    CHECK(breaches() == "input x has a shape outside of the context's profile");
  }
  SUBCASE("a shape before the profile") {
    CHECK_FALSE(caller.set_shape());
    CHECK(breaches() == "an input's shape is set before the profile");
  }
  SUBCASE("a profile that is set twice") {
    caller.set_profile();
    caller.set_profile();
    CHECK(breaches() == "a context's profile is set twice");
  }
  SUBCASE("an output's shape before the inputs'") {
    caller.set_profile();
    caller.context->getTensorShape("y");
    CHECK(breaches() == "a shape is asked for before those of all inputs are set");
  }
  SUBCASE("the size of the scratch memory before the shapes") {
    caller.set_profile();
    caller.context->updateDeviceMemorySizeForShapes();
    CHECK(breaches() == "the size of the scratch memory is asked for before the shapes of all inputs are set");
  }
  SUBCASE("a run before the shapes") {
    caller.set_profile();
    CHECK_FALSE(caller.enqueue());
    CHECK(breaches() == "a run is enqueued before the shapes of all inputs are set");
  }
  SUBCASE("scratch memory that is too small") {
    caller.prepare();
    caller.context->setDeviceMemoryV2(caller.scratch, static_cast<int64_t>(caller.scratch_size) - 1);
    CHECK_FALSE(caller.enqueue());
    CHECK(breaches() == "the scratch memory is smaller than requested");
  }
  SUBCASE("scratch memory of another shape, whose size was not requested again") {
    caller.prepare();
    caller.set_shape(2);
    CHECK_FALSE(caller.enqueue());
    CHECK(breaches() == "the scratch memory is smaller than requested");
  }
  SUBCASE("an output that is larger than its memory") {
    caller.prepare();
    emulated::release(caller.y);
    caller.y = emulated::allocate(kResult - 4, caller.stream);
    caller.context->setTensorAddress("y", caller.y);
    caller.enqueue();
    emulated::release(caller.y);
    caller.y = nullptr;
    CHECK(breaches() ==
          "y lies outside of the device's memory, or beyond the end of its block\n"
          "something was written beside memory  of  bytes");
  }
  SUBCASE("a context that allocates by itself") {
    delete caller.engine->createExecutionContext(Strategy::kSTATIC);
    CHECK(breaches() == "a context is made that allocates scratch memory of its own");
  }
  SUBCASE("a function that the stand-in does not have") {
    CHECK(caller.engine->getName() == nullptr);
    CHECK(breaches() == "CudaEngine::getName is called, which the stand-in does not have");
  }
}

TEST_CASE("rules of devices") {
  emulated::set_device_count(2);
  Caller caller;
  caller.prepare();
  SUBCASE("another current device") {
    emulated::set_current_device(1);
    caller.enqueue();
    emulated::set_current_device(0);
    CHECK(breaches() == "another device is the current one");
  }
  SUBCASE("another device's stream") {
    emulated::Stream* const other = emulated::make_stream(1);
    emulated::synchronize_all();
    caller.enqueue(other);
    CHECK(breaches() == "the stream is another device's");
  }
  SUBCASE("another device's memory") {
    void* const there = emulated::allocate(kImageBytes, emulated::make_stream(1));
    caller.context->setInputTensorAddress("x", there);
    caller.enqueue();
    CHECK(breaches() == "x lies on another device");
    emulated::release(there);
  }
  SUBCASE("a context that is destroyed on another device") {
    emulated::synchronize_all();
    emulated::set_current_device(1);
    caller.context.reset();
    emulated::set_current_device(0);
    CHECK(breaches() == "a context is destroyed on another device");
  }
  emulated::set_device_count(1);
}

TEST_CASE("rules of concurrent calls") {
  Caller caller;
  caller.prepare();
  emulated::Stream* const other = emulated::make_stream(0);
  SUBCASE("one context in two streams") {
    caller.enqueue();
    caller.enqueue(other);
    CHECK(breaches().find("a run in stream  writes a context while a run in stream  may still use it") !=
          std::string::npos);
  }
  SUBCASE("a run in another stream than the one that the profile was set in") {
    caller.enqueue(other);
    CHECK(breaches() == "a run in stream  writes a context while setting a profile in stream  may still use it");
  }
  SUBCASE("two runs with one scratch memory") {
    std::unique_ptr<nvinfer1::IExecutionContext> second(caller.engine->createExecutionContext(Strategy::kUSER_MANAGED));
    Caller::set_profile(*second, other);
    second->setInputShape("x", nvinfer1::Dims4(1, 3, 8, 8));
    second->setDeviceMemoryV2(caller.scratch, static_cast<int64_t>(second->updateDeviceMemorySizeForShapes()));
    void* const result = emulated::allocate(kResult, other);
    second->setInputTensorAddress("x", caller.x);
    second->setTensorAddress("y", result);
    caller.enqueue();
    second->enqueueV3(static_cast<cudaStream_t>(Caller::handle(other)));
    CHECK(breaches() == "a run in stream  writes memory  of  bytes while a run in stream  may still use it");
    emulated::release(result);
  }
  SUBCASE("an input that is overwritten from another stream") {
    caller.enqueue();
    Caller::overwrite(caller.x, kImageBytes, other);
    CHECK(breaches() == "a copy in stream  writes memory  of  bytes while a run in stream  may still use it");
  }
  SUBCASE("an output that is freed in another stream's order") {
    emulated::synchronize_all();
    caller.enqueue(other);
    emulated::release(caller.y);
    caller.y = nullptr;
    CHECK(breaches() == "its release in stream  writes memory  of  bytes while a run in stream  may still use it");
  }
  SUBCASE("an input that was freed before") {
    emulated::release(caller.x);
    caller.x = nullptr;
    caller.enqueue();
    CHECK(breaches() == "x lies outside of the device's memory, or beyond the end of its block");
  }
  SUBCASE("a context that is destroyed while it runs") {
    emulated::synchronize_all();
    caller.enqueue();
    caller.context.reset();
    CHECK(breaches() == "a context is destroyed while a run in stream  may still use a context");
  }
  SUBCASE("a context that two threads call at once") {
    std::atomic<bool> is_over{false};
    std::thread second([&] {
      while (!is_over) caller.context->setTensorAddress("y", caller.y);
    });
    std::string found;
    for (int i = 0; i < 1000000 && found.empty(); ++i) {
      caller.context->setInputTensorAddress("x", caller.x);
      for (const std::string& breach : emulated::take_breaches()) found = breach;
    }
    is_over = true;
    second.join();
    CHECK(found == "a context is called from two threads at once");
    breaches();
  }
}

TEST_CASE("rules of objects that one thread may use at a time") {
  Caller caller;
  emulated::Vendor& vendor = emulated::Vendor::instance();
  vendor.slowness = 50000;
  const auto in_two_threads = [](const auto& work) {
    std::thread other(work);
    work();
    other.join();
  };
  SUBCASE("a runtime") {
    in_two_threads([&] {
      const std::string bytes = plan();
      delete caller.runtime->deserializeCudaEngine(bytes.data(), bytes.size());
    });
    CHECK(breaches() == "a runtime is called from two threads at once");
  }
  SUBCASE("an engine that makes contexts") {
    in_two_threads([&] { delete caller.engine->createExecutionContext(Strategy::kUSER_MANAGED); });
    CHECK(breaches() == "an engine's createExecutionContext is called from two threads at once");
  }
  vendor.slowness = 0;
}

TEST_CASE("a logger must outlive the objects that use it") {
  alignas(SilentLogger) std::array<unsigned char, sizeof(SilentLogger)> place{};
  auto* const logger = new (place.data()) SilentLogger();
  std::unique_ptr<nvinfer1::IRuntime> runtime(make_runtime(*logger));
  breaches();
  logger->~SilentLogger();
  place.fill(0xDB);  // the pattern of freed memory
  runtime.reset();
  CHECK(breaches() == "a message is logged after the logger is gone");
}

TEST_CASE("the driver in a thread without a context") {
  void* const driver = dlopen(std::getenv("HYBRID_RT_CUDA_DRIVER"), RTLD_NOW | RTLD_LOCAL);
  REQUIRE(driver != nullptr);
  const auto create = reinterpret_cast<int (*)(void**, unsigned)>(dlsym(driver, "cuStreamCreate"));
  breaches();
  std::vector<int> results;
  std::thread([&] {
    void* stream = nullptr;
    results.push_back(create(&stream, 0));
    emulated::make_context_current();
    results.push_back(create(&stream, 0));
  }).join();
  CHECK(results == std::vector<int>{emulated::kInvalidContext, emulated::kSuccess});
  CHECK(breaches() == "cuStreamCreate is called in a thread that has no context");
}

TEST_CASE("rules of the order of destruction") {
  Caller caller;
  SUBCASE("an engine before its contexts") {
    nvinfer1::IExecutionContext* const left = caller.engine->createExecutionContext(Strategy::kUSER_MANAGED);
    caller.context.reset();
    const int contexts = emulated::Vendor::instance().contexts;
    CHECK(contexts == 1);
    caller.engine.reset();
    CHECK(breaches() == "an engine is destroyed before its contexts");
    static_cast<void>(left);  // it can't be destroyed any more
    --emulated::Vendor::instance().contexts;
  }
  SUBCASE("a runtime before its engines") {
    caller.runtime.reset();
    CHECK(breaches() == "a runtime is destroyed before its engines");
    static_cast<void>(caller.context.release());
    static_cast<void>(caller.engine.release());
    --emulated::Vendor::instance().contexts;
    --emulated::Vendor::instance().engines;
  }
}

TEST_CASE("rules of graphs") {
  Caller caller;
  caller.prepare();
  emulated::Graph* graph = nullptr;
  SUBCASE("the first run of a shape is captured") {
    emulated::synchronize_all();
    REQUIRE(emulated::begin_capture(caller.stream) == emulated::kSuccess);
    CHECK_FALSE(caller.enqueue());
    emulated::end_capture(caller.stream, &graph);
    CHECK(breaches() == "the first run of a shape is captured, in which TensorRT sets itself up");
  }
  SUBCASE("a context is recorded from another stream than the one it runs in") {
    emulated::Stream* const other = emulated::make_stream(0);
    caller.enqueue();
    REQUIRE(emulated::begin_capture(other) == emulated::kSuccess);
    CHECK(caller.enqueue(other));
    emulated::end_capture(other, &graph);
    CHECK(breaches() == "a context is recorded while setting a profile in stream  may still use a context");
  }
  SUBCASE("the default stream is captured from") {
    CHECK(emulated::begin_capture(emulated::default_stream(0)) == emulated::kCaptureUnsupported);
  }
  SUBCASE("another thread's work comes into the capture") {
    REQUIRE(emulated::begin_capture(caller.stream) == emulated::kSuccess);
    std::thread([&] { Caller::overwrite(caller.x, kImageBytes, caller.stream); }).join();
    emulated::end_capture(caller.stream, &graph);
    CHECK(breaches() == "a copy is put into a stream that another thread captures from");
  }
  SUBCASE("memory is allocated, or waited, during a capture") {
    bool allocates = false;
    SUBCASE("memory") { allocates = true; }
    SUBCASE("waited") { allocates = false; }
    REQUIRE(emulated::begin_capture(caller.stream) == emulated::kSuccess);
    if (allocates) {
      emulated::release(emulated::allocate(64, emulated::default_stream(0)));
    } else {
      emulated::synchronize(emulated::default_stream(0));
    }
    CHECK(emulated::end_capture(caller.stream, &graph) == emulated::kCaptureInvalidated);
    CHECK(breaches() == (allocates ? "allocating memory is not allowed during a capture"
                                   : "waiting for a stream is not allowed during a capture"));
  }
  SUBCASE("a graph that reads memory that was freed, and one that is destroyed while it runs") {
    caller.enqueue();
    REQUIRE(emulated::begin_capture(caller.stream) == emulated::kSuccess);
    CHECK(caller.enqueue());
    REQUIRE(emulated::end_capture(caller.stream, &graph) == emulated::kSuccess);
    emulated::Graph* executable = emulated::instantiate(graph);
    CHECK(emulated::launch(executable, caller.stream) == emulated::kSuccess);
    CHECK(breaches() == "");
    emulated::release(caller.x);
    caller.x = nullptr;
    emulated::launch(executable, caller.stream);
    CHECK(breaches() == "a run uses memory  of  bytes, which was released before");
    emulated::launch(executable, caller.stream);
    emulated::destroy(executable);
    CHECK(breaches() ==
          "a run uses memory  of  bytes, which was released before\n"
          "a graph is destroyed while the launch of a graph in stream  may still use a graph");
  }
  if (graph != nullptr) emulated::destroy(graph);
}

TEST_CASE("a write outside a block is noticed when the block is freed") {
  emulated::Stream* const stream = emulated::make_stream(0);
  auto* const data = static_cast<unsigned char*>(emulated::allocate(100, stream));
  CHECK(reinterpret_cast<uintptr_t>(data) % emulated::kAllocationAlignment == 0);
  CHECK(reinterpret_cast<uintptr_t>(data) % (2 * emulated::kAllocationAlignment) != 0);
  data[100] = 1;
  emulated::release(data);
  CHECK(breaches() == "something was written beside memory  of  bytes");
}
