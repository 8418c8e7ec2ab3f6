#include "engine.h"

#include <ATen/ops/zeros.h>
#include <c10/core/DeviceGuard.h>

#include <algorithm>
#include <set>
#include <utility>

#include "call.h"
#include "cuda.h"
#include "hybrid_rt/error.h"
#include "hybrid_rt/machine.h"

namespace hybrid_rt::tensorrt {
namespace {

const CudaDevice* device_of(const Machine& machine, c10::Device device) {
  const auto index = static_cast<size_t>(device.index());
  return index < machine.cuda_devices.size() ? &machine.cuda_devices[index] : nullptr;
}

/// Returns the cache key of kernels: they depend on the GPU and on TensorRT-RTX's version. Empty for TensorRT, which
/// compiles nothing here.
std::string cache_key(const ArtifactSpec& spec, const Library& library, c10::Device device) {
  const Machine machine = Machine::here();
  const CudaDevice* const gpu = device_of(machine, device);
  if (library.name() != "tensorrt_rtx" || gpu == nullptr) return "";
  return spec.blob("engine").sha256.substr(0, 32) + "-" + library.version() + "-" + gpu->capability;
}

std::unique_ptr<VendorEngine> deserialize(const Library& library, const at::Tensor& bytes, const Bindings& bindings,
                                          c10::Device device, std::string runtime_cache) {
  const c10::DeviceGuard guard(device);
  return library.deserialize({bytes.const_data_ptr(), static_cast<size_t>(bytes.numel()),
                              bindings.is_version_compatible, std::move(runtime_cache), bindings.switches});
}

}  // namespace

TensorRtEngine::TensorRtEngine(const ArtifactSpec& spec, const Library& library, const at::Tensor& engine,
                               Bindings bindings, c10::Device device, const GraphOptions& graphs)
    : library_(library),
      bindings_(std::move(bindings)),
      device_(device),
      cache_file_(cache_key(spec, library, device)),
      engine_(deserialize(library, engine, bindings_, device, cache_file_.read())),
      contexts_(library, *engine_, device) {
  for (const TensorSpec& output : spec.outputs) {
    output_dtypes_.push_back(output.dtype);
    is_counted_.push_back(!output.min.empty() && output.min[0] != output.max[0]);
  }
  check_against(spec);
  if (graphs.mode != GraphMode::kOff && bindings_.switches.records_graphs) {
    throw Error(ErrorKind::kOption, "tensorrt", "HYBRID_RT_TENSORRT_CUDA_GRAPHS",
                "off for an engine that records itself (option cuda_graphs)", "'" + to_string(graphs.mode) + "'",
                "Unset it, or convert without that option.");
  }
  if (graphs.mode != GraphMode::kOff) {
    graphs_ = std::make_unique<GraphCache>(library_, bindings_, contexts_, device_, graphs, output_dtypes_);
  }
  const Machine machine = Machine::here();
  const CudaDevice* const gpu = device_of(machine, device);
  description_ = library.name() + " " + library.version() + ", " + spec.precision + ", " + device.str();
  if (gpu != nullptr) description_ += " (" + gpu->name + ")";
  if (graphs.mode != GraphMode::kOff) description_ += ", CUDA graphs: " + to_string(graphs.mode);
}

TensorRtEngine::~TensorRtEngine() {
  try {
    cache_file_.write(engine_->runtime_cache());
  } catch (...) {  // the cache is not written then
  }
  try {  // on their device, which may not be the one of the thread that destroys them
    const c10::DeviceGuard guard(device_);
    graphs_.reset();
    contexts_.clear();
    engine_.reset();
  } catch (...) {  // the device is lost
  }
}

void TensorRtEngine::check_against(const ArtifactSpec& spec) const {
  const auto refuse = [](const std::string& subject, const std::string& expected, const std::string& got) {
    throw Error(ErrorKind::kBundle, "tensorrt", "artifact, " + subject, expected, got,
                "Convert the detector again: the engine does not match its description.");
  };
  const auto set_of = [](const std::vector<std::string>& names) {
    std::set<std::string> set(names.begin(), names.end());
    set.erase("");
    return set;
  };
  if (set_of(engine_->inputs()) != set_of(bindings_.inputs) ||
      set_of(engine_->outputs()) != set_of(bindings_.outputs)) {
    refuse("tensors", "the names that were recorded when it was built", "others");
  }
  if (engine_->profiles() != static_cast<int64_t>(bindings_.profiles.size())) {
    refuse("profiles", std::to_string(bindings_.profiles.size()), std::to_string(engine_->profiles()));
  }
  const auto check = [&](const std::vector<std::string>& names, const std::vector<TensorSpec>& specs) {
    for (size_t i = 0; i < names.size(); ++i) {
      if (names[i].empty()) continue;
      const std::string expected = to_string(specs[i]);
      const std::string got = engine_->dtype(names[i]);
      if (!expected.ends_with(" " + got)) refuse("tensor '" + names[i] + "'", expected, got);
      if (!engine_->is_on_device(names[i])) {
        refuse("tensor '" + names[i] + "'", "one on the device", "one on the host, whose values decide on shapes");
      }
    }
  };
  check(bindings_.inputs, spec.inputs);
  check(bindings_.outputs, spec.outputs);
}

std::vector<at::Tensor> TensorRtEngine::run(at::ArrayRef<at::Tensor> inputs) {
  const c10::DeviceGuard guard(device_);
  if (is_capturing(current_stream(device_))) {
    throw Error(ErrorKind::kInput, "tensorrt", "stream", "one that is not being recorded",
                "one that is being recorded into a CUDA graph",
                "Run it outside of the recording; HYBRID_RT_TENSORRT_CUDA_GRAPHS=copy records the engine by itself.");
  }
  const bool is_empty =
      std::any_of(inputs.begin(), inputs.end(), [](const at::Tensor& input) { return input.numel() == 0; });
  try {
    return is_empty ? run_empty(inputs) : run_full(inputs);
  } catch (const c10::OutOfMemoryError& error) {
    throw Error(ErrorKind::kBackend, "tensorrt", "run", "memory on " + device_.str() + " for copies of tensors",
                text_of(error),
                "Pass smaller images or fewer at once, or end other programs. The engine remains usable.");
  } catch (const c10::Error& error) {
    throw Error(ErrorKind::kBackend, "tensorrt", "run", "torch's work on " + device_.str() + " to succeed",
                text_of(error), "");
  }
}

std::vector<at::Tensor> TensorRtEngine::run_full(at::ArrayRef<at::Tensor> inputs) {
  const c10::Stream stream = current_stream(device_);
  const size_t profile = bindings_.profile_for(shapes_of(inputs));
  if (graphs_) {
    if (auto outputs = graphs_->run(profile, inputs, stream)) return std::move(*outputs);
  }
  ContextPool::Lease context = contexts_.lease(profile, stream);
  // Kept alive until the work is launched: afterwards torch reuses the memory only in the same stream.
  CallMemory memory = prepare_call(library_, bindings_, *context, inputs, output_dtypes_);
  if (!context->context->enqueue(handle_of(stream))) {
    context.discard();
    library_.require(false, "run");
  }
  return std::move(memory.outputs);
}

std::vector<at::Tensor> TensorRtEngine::run_empty(at::ArrayRef<at::Tensor> inputs) {
  std::vector<at::Tensor> one;
  for (const at::Tensor& input : inputs) {
    Shape shape = input.sizes().vec();
    if (!shape.empty() && shape[0] == 0) shape[0] = 1;
    one.push_back(shape == input.sizes() ? input : at::zeros(shape, input.options()));
  }
  const bool is_filled =
      std::all_of(one.begin(), one.end(), [](const at::Tensor& input) { return input.numel() != 0; });
  if (!is_filled) {
    throw Error(ErrorKind::kInput, "tensorrt", "inputs", "sizes of at least 1, except in the first dimension", "0",
                "Omit images without pixels.");
  }
  std::vector<at::Tensor> outputs = run_full(one);
  for (size_t i = 0; i < outputs.size(); ++i) {
    if (is_counted_[i]) outputs[i] = outputs[i].narrow(0, 0, 0).clone();
  }
  return outputs;
}

}  // namespace hybrid_rt::tensorrt
