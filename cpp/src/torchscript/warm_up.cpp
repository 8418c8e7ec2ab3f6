#include "torchscript/warm_up.h"

#include <ATen/Parallel.h>
#include <ATen/ops/upsample_bilinear2d.h>
#include <ATen/ops/zeros.h>

#include <future>
#include <utility>
#include <vector>

#include "hybrid_rt/error.h"
#include "hybrid_rt/log.h"
#include "torchscript/golden.h"
#include "torchscript/images.h"

namespace hybrid_rt {
namespace {

/// The profiling executor watches the first call and optimises in the second.
constexpr int kCalls = 2;

using Size = std::pair<int64_t, int64_t>;

at::Tensor resized(const at::Tensor& image, const Size& size) {
  const at::Tensor batch = image.dim() == 4 ? image : image.unsqueeze(0);
  const at::Tensor pixels = batch.is_floating_point() ? batch : batch.to(at::kFloat);  // a GPU resizes floats alone
  const at::Tensor other =
      at::upsample_bilinear2d(pixels, {size.first, size.second}, /*align_corners=*/false).to(image.scalar_type());
  return image.dim() == 4 ? other : other.squeeze(0);
}

/// Black pictures, for a detector that takes nothing else.
std::vector<c10::IValue> black(const std::vector<c10::Argument>& arguments, const std::string& path,
                               c10::Device device) {
  const c10::TypePtr type = arguments.size() == 2 ? arguments[1].type() : nullptr;  // the first is self
  const at::TensorOptions options(device);
  if (type && type->kind() == c10::TypeKind::TensorType) return {at::zeros({1, 3, 8, 8}, options)};
  if (type && *type == *c10::ListType::ofTensors()) return {c10::List<at::Tensor>({at::zeros({3, 8, 8}, options)})};
  throw Error(ErrorKind::kOption, "bundle", path + ", warm_up", "a golden sample, or a detector of pictures alone",
              "neither", "Convert it with golden=True, or run your own inputs after loading.");
}

/// Throws Error(kOption) that names the size.
void run(torch::jit::Module& module, const std::vector<c10::IValue>& sample, const Size& size) {
  std::vector<c10::IValue> inputs;
  for (const c10::IValue& value : sample) {
    inputs.push_back(map_images(value, [&size](const at::Tensor& image) { return resized(image, size); }));
  }
  try {
    module.forward(std::move(inputs));
  } catch (const std::exception& error) {
    const auto* torch_error = dynamic_cast<const c10::Error*>(&error);
    throw Error(ErrorKind::kOption, "bundle",
                "warm_up at " + std::to_string(size.first) + "x" + std::to_string(size.second), "the detector to run",
                torch_error ? torch_error->what_without_backtrace() : error.what(), "Name sizes that it takes.");
  }
}

/// What an engine keeps for each of these calls (memory, kernels for the size) is made by the first of them.
void run_side_by_side(torch::jit::Module& module, const std::vector<c10::IValue>& sample, const Size& size, int calls) {
  const int threads = at::get_num_threads();  // of this thread, not of those below
  std::vector<std::future<void>> running;
  for (int i = 0; i < calls; ++i) {
    running.push_back(std::async(std::launch::async, [&] {
      at::set_num_threads(threads);
      const c10::InferenceMode no_gradients;
      run(module, sample, size);
    }));
  }
  for (auto& call : running) call.get();  // one that throws leaves those behind it to their destructors, which wait
}

}  // namespace

void warm_up(torch::jit::Module& module, const Archive& file, const LoadOptions& options) {
  const std::string& path = file.path();
  if (options.warm_up.empty()) return;
  const auto& arguments = module.get_method("forward").function().getSchema().arguments();
  std::vector<c10::IValue> sample;
  try {
    sample = read_golden(file, arguments, options.device).inputs;
  } catch (const Error&) {
    sample = black(arguments, path, options.device);
  }
  const c10::InferenceMode no_gradients;
  for (const Size& size : options.warm_up) {
    if (size.first < 1 || size.second < 1) {
      throw Error(ErrorKind::kOption, "bundle", "warm_up", "(height, width) of at least 1",
                  "(" + std::to_string(size.first) + ", " + std::to_string(size.second) + ")", "Name image sizes.");
    }
    for (int i = 0; i < kCalls; ++i) run(module, sample, size);
    if (options.concurrency > 1) run_side_by_side(module, sample, size, options.concurrency);
    log(LogLevel::kInfo, path + ": warm at " + std::to_string(size.first) + "x" + std::to_string(size.second));
  }
}

}  // namespace hybrid_rt
