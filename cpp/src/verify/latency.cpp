#include "verify/latency.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <chrono>
#include <utility>

#include "bundle/recorded_inputs.h"
#include "hybrid_rt/bundle.h"
#include "hybrid_rt/devices.h"
#include "torchscript/images.h"

namespace hybrid_rt {
namespace {

/// The profiling executor observes the first call and optimises in the second.
constexpr int kWarmUp = 2;

double milliseconds_of(torch::jit::Module& module, const std::vector<c10::IValue>& inputs, c10::Device device) {
  const auto start = std::chrono::steady_clock::now();
  module.forward(inputs);
  wait_for(device);
  return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count();
}

SizeLatency measured(torch::jit::Module& module, const std::vector<c10::IValue>& resized, c10::Device device,
                     const SizeLatency& promised, int64_t repeat) {
  for (int i = 0; i < kWarmUp; ++i) milliseconds_of(module, resized, device);
  std::vector<double> times;
  for (int64_t i = 0; i < repeat; ++i) times.push_back(milliseconds_of(module, resized, device));
  return SizeLatency::of(promised.height, promised.width, std::move(times));
}

/// Returns the conditions of this check in the form of a contract.
LatencyContract conditions_here(const torch::jit::Module& module, c10::Device device) {
  LatencyContract here;
  here.machine = MachineDescription::here(device.is_cuda() ? std::max<int64_t>(0, device.index()) : -1);
  here.device = c10::DeviceTypeName(device.type(), /*lower_case=*/true);
  here.threads = at::get_num_threads();
  here.input = "golden sample";
  for (const EngineChoice& engine : engines(module))
    here.engines[engine.name] = engine.backend + ":" + engine.precision;
  return here;
}

}  // namespace

LatencyCheck check_latency(const Archive& file, torch::jit::Module& module, const std::vector<c10::IValue>& inputs,
                           c10::Device device, const LatencyOptions& options) {
  check_latency_options(options);
  const LatencyContract contract = LatencyContract::from_manifest(file.manifest_text(), file.path());
  LatencyContract here = conditions_here(module, device);
  const auto recorded = image_inputs(file.manifest_text(), file.path());
  const std::vector<ImageInput> images = recorded ? *recorded : guessed_images(inputs);
  for (const SizeLatency& promised : chosen_sizes(contract, options)) {
    const int64_t repeat = options.repeat > 0 ? options.repeat : promised.count;
    const auto resized = resize_images(inputs, images, {promised.height, promised.width});
    here.sizes.push_back(measured(module, resized, device, promised, repeat));
  }
  return compare_latency(contract, here, options.tolerance);
}

}  // namespace hybrid_rt
