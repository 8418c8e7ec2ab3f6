#include "torchscript/warm_up.h"

#include <ATen/Parallel.h>

#include <future>
#include <string>
#include <utility>
#include <vector>

#include "hybrid_rt/error.h"
#include "hybrid_rt/log.h"
#include "torchscript/golden.h"
#include "torchscript/images.h"

namespace hybrid_rt {
namespace {

/// The profiling executor observes the first call and optimises in the second.
constexpr int kCalls = 2;

/// Arguments of forward, and the images among them.
struct Sample {
  std::vector<c10::IValue> arguments;
  std::vector<ImageInput> images;
};

/// Returns the golden sample, or black images if there is none and the detector takes nothing else.
Sample sample_of(const Archive& file, const std::vector<c10::Argument>& schema, c10::Device device) {
  const std::string& path = file.path();
  const auto images = image_inputs(file.manifest_text(), path);
  try {
    std::vector<c10::IValue> arguments = read_golden(file, schema, device).inputs;
    std::vector<ImageInput> known = images ? *images : guessed_images(arguments);
    return {std::move(arguments), std::move(known)};
  } catch (const Error&) {
    const std::vector<ImageInput> known = images.value_or(std::vector<ImageInput>{
        {.place = {"0"}, .layout = "NCHW", .shape = {1, 3, 8, 8}, .dtype = "float32"},
        {.place = {"0", std::nullopt}, .layout = "CHW", .shape = {3, 8, 8}, .dtype = "float32"}});
    auto arguments = black_images(schema, known, device);
    if (arguments) return {std::move(*arguments), known};
    throw Error(ErrorKind::kOption, "bundle", path + ", warm_up",
                "a golden sample, or a detector that takes only images", "neither",
                "Convert it with golden=True, or run your own inputs after loading.");
  }
}

/// Runs the module on images of one size. Throws Error(kOption) that names the size.
void run(torch::jit::Module& module, const Sample& sample, const ImageSize& size) {
  try {
    module.forward(resize_images(sample.arguments, sample.images, size));
  } catch (const std::exception& error) {
    const auto* torch_error = dynamic_cast<const c10::Error*>(&error);
    throw Error(ErrorKind::kOption, "bundle",
                "warm_up at " + std::to_string(size.first) + "x" + std::to_string(size.second), "the detector to run",
                torch_error ? torch_error->what_without_backtrace() : error.what(),
                "Pass sizes that the detector accepts.");
  }
}

/// Runs concurrent calls, because an engine creates what it keeps per concurrent call (memory, kernels for the size) in
/// the first of them.
void run_side_by_side(torch::jit::Module& module, const Sample& sample, const ImageSize& size, int calls) {
  const int threads = at::get_num_threads();  // the number of this thread, not of the threads below
  std::vector<std::future<void>> running;
  for (int i = 0; i < calls; ++i) {
    running.push_back(std::async(std::launch::async, [&] {
      at::set_num_threads(threads);
      const c10::InferenceMode no_gradients;
      run(module, sample, size);
    }));
  }
  for (auto& call : running) call.get();  // if one throws, the destructors of the later ones wait for them
}

}  // namespace

void warm_up(torch::jit::Module& module, const Archive& file, const LoadOptions& options) {
  const std::string& path = file.path();
  if (options.warm_up.empty()) return;
  const auto& schema = module.get_method("forward").function().getSchema().arguments();
  const Sample sample = sample_of(file, schema, options.device);
  const c10::InferenceMode no_gradients;
  for (const ImageSize& size : options.warm_up) {
    if (size.first < 1 || size.second < 1) {
      throw Error(ErrorKind::kOption, "bundle", "warm_up", "(height, width) of at least 1",
                  "(" + std::to_string(size.first) + ", " + std::to_string(size.second) + ")", "Pass image sizes.");
    }
    for (int i = 0; i < kCalls; ++i) run(module, sample, size);
    if (options.concurrency > 1) run_side_by_side(module, sample, size, options.concurrency);
    log(LogLevel::kInfo, path + ": warm at " + std::to_string(size.first) + "x" + std::to_string(size.second));
  }
}

}  // namespace hybrid_rt
