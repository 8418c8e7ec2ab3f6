// Compiled once per set of the vendor's headers. The build renames their namespace (-Dnvinfer1=...), so that inline
// functions of different versions stay separate.

#include "vendor_runtime.h"

#include <NvInferRuntime.h>

#include <algorithm>
#include <mutex>
#include <utility>

#ifdef TRT_MAJOR_RTX
#define HYBRID_RT_IS_RTX 1
#else
#define HYBRID_RT_IS_RTX 0
#endif

namespace hybrid_rt::tensorrt {
namespace {

class Logger : public nvinfer1::ILogger {
 public:
  explicit Logger(VendorLog log) : log_(std::move(log)) {}

  void log(Severity severity, const nvinfer1::AsciiChar* text) noexcept override {
    try {
      log_(static_cast<int>(severity), text);
    } catch (...) {  // the program's own logger may throw, but the vendor must not see it
    }
  }

 private:
  VendorLog log_;
};

nvinfer1::Dims dims_of(const Shape& shape) {
  nvinfer1::Dims dims{};
  dims.nbDims = static_cast<int32_t>(std::min<size_t>(shape.size(), nvinfer1::Dims::MAX_DIMS));
  for (int32_t d = 0; d < dims.nbDims; ++d) dims.d[d] = shape[static_cast<size_t>(d)];
  return dims;
}

class Context : public VendorContext {
 public:
  explicit Context(std::unique_ptr<nvinfer1::IExecutionContext> context) : context_(std::move(context)) {}

  bool set_input_shape(const std::string& name, const Shape& shape) override {
    return context_->setInputShape(name.c_str(), dims_of(shape));
  }
  bool set_input(const std::string& name, const void* data) override {
    return context_->setInputTensorAddress(name.c_str(), data);
  }
  bool set_output(const std::string& name, void* data) override {
    return context_->setTensorAddress(name.c_str(), data);
  }
  Shape output_shape(const std::string& name) const override {
    const nvinfer1::Dims dims = context_->getTensorShape(name.c_str());
    if (dims.nbDims < 0) return {-1};
    return {dims.d, dims.d + dims.nbDims};
  }
  size_t scratch_size() override { return context_->updateDeviceMemorySizeForShapes(); }
  void set_scratch(void* data, size_t size) override { context_->setDeviceMemoryV2(data, static_cast<int64_t>(size)); }
  bool enqueue(void* stream) override { return context_->enqueueV3(static_cast<cudaStream_t>(stream)); }

 private:
  std::unique_ptr<nvinfer1::IExecutionContext> context_;
};

const char* dtype_name(nvinfer1::DataType type) {
  using Type = nvinfer1::DataType;
  static constexpr std::pair<Type, const char*> kNames[] = {
      {Type::kFLOAT, "float32"}, {Type::kHALF, "float16"}, {Type::kBF16, "bfloat16"}, {Type::kINT64, "int64"},
      {Type::kINT32, "int32"},   {Type::kINT8, "int8"},    {Type::kUINT8, "uint8"},   {Type::kBOOL, "bool"}};
  for (const auto& [known, name] : kNames) {
    if (known == type) return name;
  }
  return nullptr;
}

class Engine : public VendorEngine {
 public:
  Engine(std::unique_ptr<Logger> logger, std::unique_ptr<nvinfer1::IRuntime> runtime,
         std::unique_ptr<nvinfer1::ICudaEngine> engine)
      : logger_(std::move(logger)), runtime_(std::move(runtime)), engine_(std::move(engine)) {}

  /// Applies the options. Returns false if the vendor refuses. Only TensorRT-RTX has these options.
  bool configure([[maybe_unused]] const DeserializeOptions& options) {
#if HYBRID_RT_IS_RTX
    config_.reset(engine_->createRuntimeConfig());
    if (!config_) return options.switches.is_default();
    config_->setExecutionContextAllocationStrategy(nvinfer1::ExecutionContextAllocationStrategy::kUSER_MANAGED);
    using Strategy = nvinfer1::DynamicShapesKernelSpecializationStrategy;
    config_->setDynamicShapesKernelSpecializationStrategy(
        options.switches.kernels == RtxSwitches::Kernels::kEager  ? Strategy::kEAGER
        : options.switches.kernels == RtxSwitches::Kernels::kNone ? Strategy::kNONE
                                                                  : Strategy::kLAZY);
    if (options.switches.records_graphs &&
        !config_->setCudaGraphStrategy(nvinfer1::CudaGraphStrategy::kWHOLE_GRAPH_CAPTURE)) {
      return false;
    }
    cache_.reset(config_->createRuntimeCache());
    if (!cache_) return true;
    // The runtime refuses a cache of another driver or device, and it is then rebuilt.
    if (!options.runtime_cache.empty()) {
      cache_->deserialize(options.runtime_cache.data(), options.runtime_cache.size());
    }
    config_->setRuntimeCache(*cache_);
#endif
    return true;
  }

  int64_t profiles() const override { return engine_->getNbOptimizationProfiles(); }
  std::vector<std::string> inputs() const override { return names(nvinfer1::TensorIOMode::kINPUT); }
  std::vector<std::string> outputs() const override { return names(nvinfer1::TensorIOMode::kOUTPUT); }

  std::string dtype(const std::string& name) const override {
    const nvinfer1::DataType type = engine_->getTensorDataType(name.c_str());
    const char* known = dtype_name(type);
    return known != nullptr ? known : "TensorRT's type " + std::to_string(static_cast<int>(type));
  }

  bool is_on_device(const std::string& name) const override {
    return engine_->getTensorLocation(name.c_str()) == nvinfer1::TensorLocation::kDEVICE;
  }

  std::unique_ptr<VendorContext> make_context(int64_t profile, void* stream) override {
    const std::lock_guard lock(mutex_);
    std::unique_ptr<nvinfer1::IExecutionContext> context(create_context());
    if (!context) return nullptr;
    if (!context->setOptimizationProfileAsync(static_cast<int32_t>(profile), static_cast<cudaStream_t>(stream))) {
      return nullptr;
    }
    return std::make_unique<Context>(std::move(context));
  }

  std::string runtime_cache() const override {
#if HYBRID_RT_IS_RTX
    const std::lock_guard lock(mutex_);
    if (!cache_) return "";
    const std::unique_ptr<nvinfer1::IHostMemory> bytes(cache_->serialize());
    if (bytes) return {static_cast<const char*>(bytes->data()), bytes->size()};
#endif
    return "";
  }

 private:
  nvinfer1::IExecutionContext* create_context() {
#if HYBRID_RT_IS_RTX
    if (config_) return engine_->createExecutionContext(config_.get());
#endif
    return engine_->createExecutionContext(nvinfer1::ExecutionContextAllocationStrategy::kUSER_MANAGED);
  }

  std::vector<std::string> names(nvinfer1::TensorIOMode mode) const {
    std::vector<std::string> found;
    for (int32_t i = 0; i < engine_->getNbIOTensors(); ++i) {
      const char* name = engine_->getIOTensorName(i);
      if (engine_->getTensorIOMode(name) == mode) found.emplace_back(name);
    }
    return found;
  }

  // Members are destroyed in reverse order.
  std::unique_ptr<Logger> logger_;
  std::unique_ptr<nvinfer1::IRuntime> runtime_;
  std::unique_ptr<nvinfer1::ICudaEngine> engine_;
  mutable std::mutex mutex_;  // contexts are made one at a time
#if HYBRID_RT_IS_RTX
  std::unique_ptr<nvinfer1::IRuntimeCache> cache_;
  std::unique_ptr<nvinfer1::IRuntimeConfig> config_;
#endif
};

std::unique_ptr<VendorEngine> deserialize(void* create, int version, const VendorLog& log,
                                          const DeserializeOptions& options) {
  auto logger = std::make_unique<Logger>(log);
  const auto make_runtime = reinterpret_cast<void* (*)(void*, int32_t) noexcept>(create);
  // The version is the library's own; the caller has checked that it fits these headers.
  nvinfer1::ILogger* const base = logger.get();
  std::unique_ptr<nvinfer1::IRuntime> runtime(static_cast<nvinfer1::IRuntime*>(make_runtime(base, version)));
  if (!runtime) return nullptr;
  if (options.allows_host_code) runtime->setEngineHostCodeAllowed(true);
  std::unique_ptr<nvinfer1::ICudaEngine> engine(runtime->deserializeCudaEngine(options.bytes, options.size));
  if (!engine) return nullptr;
  auto made = std::make_unique<Engine>(std::move(logger), std::move(runtime), std::move(engine));
  if (!made->configure(options)) return nullptr;
  return made;
}

#ifdef TRT_MAJOR_RTX
constexpr char kLibrary[] = "tensorrt_rtx";
#else
constexpr char kLibrary[] = "tensorrt";
#endif

[[maybe_unused]] const bool registered = [] {
  vendor_headers().push_back({kLibrary, NV_TENSORRT_MAJOR, NV_TENSORRT_MINOR, HYBRID_RT_IS_RTX != 0, &deserialize});
  return true;
}();

}  // namespace
}  // namespace hybrid_rt::tensorrt
