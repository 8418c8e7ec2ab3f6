// A stand-in for TensorRT's runtime library, built from the vendor's own class tables: it is opened and called like the
// vendor's. It runs its own networks (network.h) on the emulated GPU, and reports every violation of the contract in
// NvInferRuntime.h by its caller.

#include <NvInferRuntime.h>

#include <chrono>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <map>
#include <memory>
#include <optional>
#include <thread>

#include "gpu.h"
#include "network.h"
#include "vendor.h"

namespace emulated {

/// Used by methods that the stand-in does not implement.
template <typename Result>
Result refused(const char* method) {
  report_breach(std::string(method) + " is called, which the stand-in does not have");
  if constexpr (std::is_reference_v<Result>) {
    std::abort();
  } else {
    return Result();
  }
}

}  // namespace emulated

#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wunused-parameter"
#include "refusals.h"
#pragma GCC diagnostic pop

namespace nvinfer1 {
namespace {

using emulated::Network;
using emulated::report_breach;
using emulated::Shape;
using emulated::Vendor;
using Severity = ILogger::Severity;

constexpr uintptr_t kAlignment = 256;  // setTensorAddress: "at least 256-byte alignment"

int32_t version_of_library() {
  const char* const asked = std::getenv("EMULATED_TENSORRT_VERSION");
  if (asked != nullptr) return std::atoi(asked);
  return NV_TENSORRT_MAJOR * 10000 + NV_TENSORRT_MINOR * 100 + NV_TENSORRT_PATCH;
}

std::string version_text() {
  const int32_t version = version_of_library();
  return std::to_string(version / 10000) + "." + std::to_string(version / 100 % 100) + "." +
         std::to_string(version % 100);
}

Dims dims_of(const Shape& shape) {
  Dims dims{};
  dims.nbDims = static_cast<int32_t>(shape.size());
  for (size_t i = 0; i < shape.size(); ++i) dims.d[i] = shape[i];
  return dims;
}

DataType type_of(const std::string& dtype) {
  if (dtype == "float16") return DataType::kHALF;
  if (dtype == "bfloat16") return DataType::kBF16;
  if (dtype == "int64") return DataType::kINT64;
  if (dtype == "int32") return DataType::kINT32;
  if (dtype == "int8") return DataType::kINT8;
  if (dtype == "uint8") return DataType::kUINT8;
  if (dtype == "bool") return DataType::kBOOL;
  if (dtype == "fp8") return DataType::kFP8;
  return DataType::kFLOAT;
}

void be_slow() {
  const int microseconds = Vendor::instance().slowness;
  if (microseconds > 0) std::this_thread::sleep_for(std::chrono::microseconds(microseconds));
}

/// Detects two threads in an object that only one thread at a time may use.
class OneThread {
 public:
  OneThread(std::atomic<int>& inside, const char* what) : inside_(inside) {
    if (inside_.fetch_add(1) != 0) report_breach(std::string(what) + " is called from two threads at once");
  }
  OneThread(const OneThread&) = delete;
  OneThread& operator=(const OneThread&) = delete;
  ~OneThread() { inside_.fetch_sub(1); }

 private:
  std::atomic<int>& inside_;
};

class Log {
 public:
  explicit Log(ILogger& logger) : logger_(logger), table_(table_of(logger)) {}
  void operator()(Severity severity, const std::string& text) const {
    if (severity <= Severity::kERROR && Vendor::instance().says_nothing) return;
    if (table_of(logger_) != table_) {
      report_breach("a message is logged after the logger is gone");
    } else {
      logger_.log(severity, text.c_str());
    }
  }
  bool fail(const std::string& text) const {
    (*this)(Severity::kERROR, text);
    return false;
  }

 private:
  /// Returns the first word of an object with virtual functions, which an allocator overwrites with its lists once the
  /// object is freed.
  static const void* table_of(const ILogger& logger) {
    const void* table = nullptr;
    std::memcpy(&table, static_cast<const void*>(&logger), sizeof table);
    return table;
  }

  ILogger& logger_;
  const void* table_;
};

struct EngineState {
  EngineState(Network network, Log log, int device)
      : shared(std::make_shared<const Network>(std::move(network))), network(*shared), log(log), device(device) {}

  const std::shared_ptr<const Network> shared;  // shared with the work in a stream
  const Network& network;
  const Log log;
  const int device;
  const emulated::ResourcePointer weights = emulated::make_resource("an engine's weights");
  std::atomic<int> contexts{0};
  std::atomic<int> inside{0};
};

#ifdef TRT_MAJOR_RTX
class HostMemory final : public IHostMemory, public apiv::VHostMemory {
 public:
  explicit HostMemory(std::string bytes) : bytes_(std::move(bytes)) { mImpl = this; }
  void* data() const noexcept override { return const_cast<char*>(bytes_.data()); }
  std::size_t size() const noexcept override { return bytes_.size(); }
  DataType type() const noexcept override { return DataType::kINT8; }

 private:
  std::string bytes_;
};

constexpr char kCacheMark[] = "kernels:";

/// One byte per kernel.
class RuntimeCache final : public IRuntimeCache {
 public:
  IHostMemory* serialize() const noexcept override { return new HostMemory(kCacheMark + std::string(*kernels, 'k')); }
  bool deserialize(void const* blob, std::size_t size) noexcept override {
    const std::string text(static_cast<const char*>(blob), size);
    if (!text.starts_with(kCacheMark)) return false;
    *kernels = static_cast<int>(size - std::strlen(kCacheMark));
    Vendor::instance().kernels_from_cache += *kernels;
    return true;
  }

  const std::shared_ptr<std::atomic<int>> kernels = std::make_shared<std::atomic<int>>(0);
};

class RuntimeConfig final : public IRuntimeConfig, public apiv::VRuntimeConfig {
 public:
  RuntimeConfig() { mImpl = this; }
  IRuntimeConfig* getPImpl() noexcept override { return this; }
  void setExecutionContextAllocationStrategy(ExecutionContextAllocationStrategy given) noexcept override {
    allocation = given;
  }
  ExecutionContextAllocationStrategy getExecutionContextAllocationStrategy() const noexcept override {
    return allocation;
  }
  void setDynamicShapesKernelSpecializationStrategy(DynamicShapesKernelSpecializationStrategy given) noexcept override {
    kernel_strategy = given;
  }
  bool setCudaGraphStrategy(CudaGraphStrategy given) noexcept override {
    if (Vendor::instance().refuses_graph_strategy) return false;
    graph_strategy = given;
    return true;
  }
  IRuntimeCache* createRuntimeCache() const noexcept override { return new RuntimeCache(); }
  bool setRuntimeCache(IRuntimeCache const& cache) noexcept override {
    kernels = static_cast<const RuntimeCache&>(cache).kernels;
    return true;
  }

  ExecutionContextAllocationStrategy allocation = ExecutionContextAllocationStrategy::kSTATIC;
  DynamicShapesKernelSpecializationStrategy kernel_strategy = DynamicShapesKernelSpecializationStrategy::kLAZY;
  CudaGraphStrategy graph_strategy = CudaGraphStrategy::kDISABLED;
  std::shared_ptr<std::atomic<int>> kernels;
};
#endif

class Context final : public IExecutionContext, public RefusingExecutionContext {
 public:
  explicit Context(EngineState& engine) : engine_(engine) {
    mImpl = this;
    ++engine_.contexts;
    ++Vendor::instance().contexts;
    ++Vendor::instance().made;
  }
  ~Context() noexcept override {
    const OneThread one(inside_, "a context");
    if (emulated::current_device() != engine_.device) report_breach("a context is destroyed on another device");
    emulated::require_idle(itself_, "a context is destroyed");
    --engine_.contexts;
    --Vendor::instance().contexts;
  }

  IExecutionContext* getPImpl() noexcept override { return this; }

  bool setOptimizationProfileAsync(int32_t profile, cudaStream_t handle) noexcept override {
    const OneThread one(inside_, "a context");
    if (Vendor::instance().refuses_profiles) return engine_.log.fail("setOptimizationProfileAsync: refused");
    if (profile < 0 || static_cast<size_t>(profile) >= engine_.network.profiles.size()) {
      return engine_.log.fail("setOptimizationProfileAsync: no profile " + std::to_string(profile));
    }
    if (profile_) report_breach("a context's profile is set twice");
    profile_ = static_cast<size_t>(profile);
    shapes_.clear();
    is_sized_ = false;
    emulated::Stream* const stream = stream_of(handle);
    if (emulated::is_capturing(stream)) report_breach("a profile is set while its stream is captured from");
    emulated::enqueue(stream, {"setting a profile", {{itself_, true}, {engine_.weights, false}}, {}, false});
    return true;
  }

  bool setInputShape(char const* name, Dims const& dims) noexcept override {
    const OneThread one(inside_, "a context");
    if (!profile_) {
      report_breach("an input's shape is set before the profile");
      return false;
    }
    const auto& ranges = engine_.network.profiles[*profile_];
    const auto range = ranges.find(name);
    if (range == ranges.end()) return engine_.log.fail("setInputShape: no input " + std::string(name));
    const Shape shape(dims.d, dims.d + dims.nbDims);
    bool is_inside = shape.size() == range->second.min.size();
    for (size_t d = 0; is_inside && d < shape.size(); ++d) {
      is_inside = shape[d] >= range->second.min[d] && shape[d] <= range->second.max[d];
    }
    if (!is_inside) {
      report_breach("input " + std::string(name) + " has a shape outside of the context's profile");
      return engine_.log.fail("setInputShape: a shape outside of profile " + std::to_string(*profile_));
    }
    shapes_[name] = shape;
    is_sized_ = false;
    return true;
  }

  Dims getTensorShape(char const* name) const noexcept override {
    const OneThread one(inside_, "a context");
    const emulated::Tensor* const tensor = engine_.network.find(name);
    if (tensor == nullptr) return Dims{-1, {}};
    if (!has_all_shapes()) {
      report_breach("a shape is asked for before those of all inputs are set");
      return dims_of(tensor->shape);
    }
    Shape shape = engine_.network.infer(shapes_).at(name);
    if (Vendor::instance().hides_output_shapes) shape.front() = -1;
    return dims_of(shape);
  }

  size_t updateDeviceMemorySizeForShapes() noexcept override {
    const OneThread one(inside_, "a context");
    if (!has_all_shapes()) {
      report_breach("the size of the scratch memory is asked for before the shapes of all inputs are set");
      return 0;
    }
    if (Vendor::instance().fails_scratch_size) {
      engine_.log.fail("updateDeviceMemorySizeForShapes: asked to fail");
      return 0;
    }
    is_sized_ = true;
    return engine_.network.scratch_size(engine_.network.infer(shapes_));
  }

  void setDeviceMemoryV2(void* memory, int64_t size) noexcept override {
    const OneThread one(inside_, "a context");
    if (reinterpret_cast<uintptr_t>(memory) % kAlignment != 0) report_breach("the scratch memory is not aligned");
    scratch_ = memory;
    scratch_size_ = static_cast<size_t>(size);
  }

  bool setTensorAddress(char const* name, void* data) noexcept override { return set_address(name, data); }
  bool setInputTensorAddress(char const* name, void const* data) noexcept override {
    return set_address(name, const_cast<void*>(data));
  }

  bool enqueueV3(cudaStream_t handle) noexcept override {
    const OneThread one(inside_, "a context");
    Vendor& vendor = Vendor::instance();
    ++vendor.enqueues;
    be_slow();
    emulated::Stream* const stream = stream_of(handle);
    if (emulated::is_lost(engine_.device)) return engine_.log.fail("Cuda Runtime (unspecified launch failure)");
    if (vendor.fail_enqueue > 0 && vendor.fail_enqueue.fetch_sub(1) == 1) {
      return engine_.log.fail("enqueueV3: asked to fail");
    }
    if (!is_ready()) return engine_.log.fail("enqueueV3: the caller broke the contract");
    if (emulated::is_capturing(stream) && shapes_ != shapes_that_ran_) {
      report_breach("the first run of a shape is captured, in which TensorRT sets itself up");
      return engine_.log.fail("enqueueV3: the first run of a shape can't be captured");
    }
    if (emulated::is_capturing(stream)) emulated::require_order(itself_, stream, "a context is recorded");
    shapes_that_ran_ = shapes_;
    emulated::enqueue(stream, operation());
    return true;
  }

 private:
  emulated::Stream* stream_of(cudaStream_t handle) const {
    emulated::Stream* const stream = emulated::stream_of(handle);
    if (emulated::current_device() != engine_.device) report_breach("another device is the current one");
    if (emulated::device_of(stream) != engine_.device) report_breach("the stream is another device's");
    return stream;
  }

  bool has_all_shapes() const { return shapes_.size() == engine_.network.inputs.size(); }

  bool set_address(const char* name, void* data) {
    const OneThread one(inside_, "a context");
    const emulated::Tensor* const tensor = engine_.network.find(name);
    if (tensor == nullptr) return engine_.log.fail("no tensor " + std::string(name));
    const Vendor& vendor = Vendor::instance();
    const bool is_input = tensor >= engine_.network.inputs.data() &&
                          tensor < engine_.network.inputs.data() + engine_.network.inputs.size();
    if (is_input ? vendor.refuses_inputs : vendor.refuses_outputs) {
      return engine_.log.fail("setTensorAddress: asked to refuse " + std::string(name));
    }
    if (reinterpret_cast<uintptr_t>(data) % kAlignment != 0) {
      report_breach("the address of " + std::string(name) + " is not aligned");
      return engine_.log.fail("setTensorAddress: an address that is not aligned");
    }
    addresses_[name] = data;
    return true;
  }

  size_t scratch_that_is_needed() const {
    if (is_sized_) return engine_.network.scratch_size(engine_.network.infer(shapes_));
    std::map<std::string, Shape> largest;
    for (const auto& [name, range] : engine_.network.profiles[*profile_]) largest[name] = range.max;
    return engine_.network.scratch_size(engine_.network.infer(largest));
  }

  bool is_ready() const {
    if (!profile_ || !has_all_shapes()) {
      report_breach("a run is enqueued before the shapes of all inputs are set");
      return false;
    }
    for (const auto* tensors : {&engine_.network.inputs, &engine_.network.outputs}) {
      for (const emulated::Tensor& tensor : *tensors) {
        const auto found = addresses_.find(tensor.name);
        if (found != addresses_.end() && found->second != nullptr) continue;
        report_breach("a run is enqueued before the address of " + tensor.name + " is set");
        return false;
      }
    }
    if (scratch_size_ < scratch_that_is_needed()) {
      report_breach("the scratch memory is smaller than requested");
      return false;
    }
    return true;
  }

  emulated::Operation operation() const {
    const auto shapes = engine_.network.infer(shapes_);
    emulated::Operation operation{"a run", {{itself_, true}, {engine_.weights, false}}, {}, true};
    std::map<std::string, float*> places;
    const auto add = [&](const std::vector<emulated::Tensor>& tensors, bool is_write) {
      for (const emulated::Tensor& tensor : tensors) {
        void* const address = addresses_.at(tensor.name);
        const size_t size = static_cast<size_t>(emulated::elements_of(shapes.at(tensor.name))) * sizeof(float);
        operation.uses.push_back(emulated::use_of(address, size, is_write, engine_.device, tensor.name));
        places[tensor.name] = static_cast<float*>(address);
      }
    };
    add(engine_.network.inputs, false);
    add(engine_.network.outputs, true);
    operation.uses.push_back(
        emulated::use_of(scratch_, engine_.network.scratch_size(shapes), true, engine_.device, "the scratch memory"));
    operation.work = [network = engine_.shared, shapes, places, scratch = static_cast<float*>(scratch_)] {
      network->run(shapes, places, scratch);
    };
    return operation;
  }

  EngineState& engine_;
  mutable std::atomic<int> inside_{0};
  const emulated::ResourcePointer itself_ = emulated::make_resource("a context");
  std::optional<size_t> profile_;
  std::map<std::string, Shape> shapes_;
  std::map<std::string, Shape> shapes_that_ran_;
  std::map<std::string, void*> addresses_;
  bool is_sized_ = false;
  void* scratch_ = nullptr;
  size_t scratch_size_ = 0;
};

class Engine final : public ICudaEngine, public RefusingCudaEngine {
 public:
  Engine(Network network, Log log, std::atomic<int>& engines_of_runtime)
      : state_(std::move(network), log, emulated::current_device()), engines_of_runtime_(engines_of_runtime) {
    mImpl = this;
    ++engines_of_runtime_;
    ++Vendor::instance().engines;
  }
  ~Engine() noexcept override {
    if (state_.contexts != 0) report_breach("an engine is destroyed before its contexts");
    emulated::require_idle(state_.weights, "an engine is destroyed");
    --engines_of_runtime_;
    --Vendor::instance().engines;
  }

  ICudaEngine* getPImpl() noexcept override { return this; }

#ifdef TRT_MAJOR_RTX
  IRuntimeConfig* createRuntimeConfig() noexcept override { return new RuntimeConfig(); }
  IExecutionContext* createExecutionContextWithRuntimeConfig(IRuntimeConfig* given) noexcept override {
    const auto& config = *static_cast<RuntimeConfig*>(given);
    Vendor::instance().kernel_strategy = static_cast<int>(config.kernel_strategy);
    Vendor::instance().graph_strategy = static_cast<int>(config.graph_strategy);
    if (config.kernels) ++*config.kernels;
    return createExecutionContext(config.allocation);
  }
#endif

  IExecutionContext* createExecutionContext(ExecutionContextAllocationStrategy strategy) noexcept override {
    const OneThread one(state_.inside, "an engine's createExecutionContext");
    be_slow();
    if (emulated::current_device() != state_.device) report_breach("a context is made on another device");
    if (strategy != ExecutionContextAllocationStrategy::kUSER_MANAGED) {
      report_breach("a context is made that allocates scratch memory of its own");
    }
    if (Vendor::instance().refuses_contexts || emulated::is_lost(state_.device)) {
      state_.log.fail("createExecutionContext: out of memory");
      return nullptr;
    }
    return new Context(state_);
  }

  int32_t getNbOptimizationProfiles() const noexcept override {
    return static_cast<int32_t>(state_.network.profiles.size());
  }
  int32_t getNbIOTensors() const noexcept override {
    return static_cast<int32_t>(state_.network.inputs.size() + state_.network.outputs.size());
  }
  char const* getIOTensorName(int32_t index) const noexcept override {
    const auto place = static_cast<size_t>(index);
    const size_t inputs = state_.network.inputs.size();
    const auto& tensor = place < inputs ? state_.network.inputs[place] : state_.network.outputs[place - inputs];
    return tensor.name.c_str();
  }
  TensorIOMode getTensorIOMode(char const* name) const noexcept override {
    for (const emulated::Tensor& input : state_.network.inputs) {
      if (input.name == name) return TensorIOMode::kINPUT;
    }
    return state_.network.find(name) != nullptr ? TensorIOMode::kOUTPUT : TensorIOMode::kNONE;
  }
  DataType getTensorDataType(char const* name) const noexcept override {
    const emulated::Tensor* const tensor = state_.network.find(name);
    return type_of(tensor != nullptr ? tensor->dtype : "float32");
  }
  TensorLocation getTensorLocation(char const* name) const noexcept override {
    const emulated::Tensor* const tensor = state_.network.find(name);
    return tensor != nullptr && tensor->is_on_host ? TensorLocation::kHOST : TensorLocation::kDEVICE;
  }

 private:
  EngineState state_;
  std::atomic<int>& engines_of_runtime_;
};

class Runtime final : public IRuntime, public RefusingRuntime {
 public:
  explicit Runtime(ILogger& logger) : log_(logger) {
    mImpl = this;
    ++Vendor::instance().runtimes;
    log_(Severity::kVERBOSE, "the runtime begins");
  }
  ~Runtime() noexcept override {
    if (engines_ != 0) report_breach("a runtime is destroyed before its engines");
    --Vendor::instance().runtimes;
    log_(Severity::kVERBOSE, "the runtime ends");
  }

  IRuntime* getPImpl() noexcept override { return this; }
  void setEngineHostCodeAllowed(bool allowed) noexcept override { allows_host_code_ = allowed; }

  ICudaEngine* deserializeCudaEngine(void const* blob, std::size_t size) noexcept override {
    const OneThread one(inside_, "a runtime");
    be_slow();
    try {
      Network network = Network::parse({static_cast<const char*>(blob), size});
      if (network.version != version_text() && !network.has_host_code) {
        log_.fail("deserializeCudaEngine: the plan is for version " + network.version + ", this is " + version_text());
        return nullptr;
      }
      if (network.has_host_code && !allows_host_code_) {
        log_.fail("deserializeCudaEngine: the plan has host code, which is not allowed");
        return nullptr;
      }
      log_(Severity::kINFO, "deserializeCudaEngine: " + std::to_string(size) + " bytes");
      return new Engine(std::move(network), log_, engines_);
    } catch (const std::exception& error) {
      log_.fail("deserializeCudaEngine: magic tag does not match");
      return nullptr;
    }
  }

 private:
  Log log_;
  bool allows_host_code_ = false;
  std::atomic<int> engines_{0};
  std::atomic<int> inside_{0};
};

}  // namespace
}  // namespace nvinfer1

extern "C" __attribute__((visibility("default"))) int32_t getInferLibVersion() noexcept {
  return nvinfer1::version_of_library();
}

extern "C" __attribute__((visibility("default"))) void* createInferRuntime_INTERNAL(void* logger,
                                                                                    int32_t version) noexcept {
  if (logger == nullptr) {
    emulated::report_breach("a runtime is made without a logger");
    return nullptr;
  }
  auto& log = *static_cast<nvinfer1::ILogger*>(logger);
  if (version != nvinfer1::version_of_library()) {
    log.log(nvinfer1::ILogger::Severity::kINTERNAL_ERROR, "createInferRuntime: another version was requested");
    return nullptr;
  }
  return static_cast<nvinfer1::IRuntime*>(new nvinfer1::Runtime(log));
}
