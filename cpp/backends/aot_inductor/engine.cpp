#include "engine.h"

#include <ATen/Context.h>
#include <ATen/Parallel.h>
#include <c10/core/DeviceGuard.h>
#include <omp.h>
#include <pthread.h>
#include <torch/version.h>

#include <algorithm>
#include <optional>
#include <thread>

#include "hybrid_rt/error.h"
#include "hybrid_rt/plugin/nan_values.h"

namespace hybrid_rt::aot_inductor {
namespace {

/// True in the first thread of a forked process. OpenMP still expects the threads that this thread had in the parent,
/// and would wait for them forever.
thread_local bool was_forked = false;

void watch_forks() {
  [[maybe_unused]] static const int registered = pthread_atfork(nullptr, nullptr, [] { was_forked = true; });
}

/// Sets the calling thread's number of OpenMP threads, which the compiled loops read, as do the functions of ATen and
/// oneDNN that they call. at::set_num_threads would also change the number for threads that start later.
class ThreadsGuard {
 public:
  explicit ThreadsGuard(int threads) : before_(at::get_num_threads()) {  // read first: this sets up torch's thread
    const int wanted = was_forked ? 1 : threads;
    if (wanted != before_) omp_set_num_threads(wanted);
  }
  ThreadsGuard(const ThreadsGuard&) = delete;
  ThreadsGuard& operator=(const ThreadsGuard&) = delete;
  ~ThreadsGuard() { omp_set_num_threads(before_); }

 private:
  int before_;
};

/// Returns an output that the caller may write into: a copy if it may be an input, a weight, another output, or a view
/// of one.
at::Tensor owned(const at::Tensor& output) {
  const bool is_shared = output.use_count() > 1 || output.storage().use_count() > 1;
  return is_shared ? output.clone(at::MemoryFormat::Contiguous) : output.contiguous();
}

/// Calls `work` and converts torch's exceptions into Error.
template <typename Work>
auto guarded(const char* subject, const char* expected, const char* remedy, const Work& work) {
  try {
    return work();
  } catch (const Error&) {
    throw;
  } catch (const c10::Error& error) {
    throw Error(ErrorKind::kBackend, "aot_inductor", subject, expected, error.what_without_backtrace(), remedy);
  } catch (const std::exception& error) {
    throw Error(ErrorKind::kBackend, "aot_inductor", subject, expected, error.what(), remedy);
  }
}

/// Makes a device the calling thread's current one while the guard is in scope. Does nothing for the CPU.
c10::OptionalDeviceGuard on(c10::Device device) {
  return c10::OptionalDeviceGuard(device.is_cpu() ? std::nullopt : std::make_optional(device));
}

/// Returns the number of runners: one per call that can run concurrently. They share the weights.
size_t runners_for(c10::Device device) {
  if (device.is_cpu()) return std::max(2U, std::thread::hardware_concurrency());
  // Calls alternate between the runners, each of which loads the kernels in its first call. Two keep the GPU busy: one
  // runs while the next is being launched.
  return 2;
}

/// Creates torch's runner for a kind of device. Nothing of the CUDA one is linked: libtorch_cuda registers it with
/// torch.
std::unique_ptr<torch::inductor::AOTIModelContainerRunner> make_runner(const std::string& path, c10::Device device) {
  const auto& known = torch::inductor::getAOTIModelRunnerRegistry();
  const auto found = known.find(c10::DeviceTypeName(device.type(), /*lower_case=*/true));
  TORCH_CHECK(found != known.end(), "torch has no runner for ", device);
  const std::string where = device.is_cpu() ? "cpu" : device.str();  // it does not accept "cpu:0
  return found->second(path, runners_for(device), where, /*bin_dir=*/"", /*run_single_threaded=*/false);
}

}  // namespace

AotInductorEngine::AotInductorEngine(const ArtifactSpec& spec, const at::Tensor& library, Conditions conditions,
                                     bool handles_nan, const EngineOptions& options)
    : conditions_(std::move(conditions)),
      outputs_(spec.outputs.size()),
      precision_(spec.precision),
      device_(options.device),
      threads_(options.threads > 0 ? options.threads : at::get_num_threads()),
      loses_nan_(options.device.is_cpu() && !handles_nan),
      file_(spec.blob("library").sha256, library) {
  watch_forks();
  make_torch_visible(device_.type());
  runner_ = guarded("artifact", "a library that torch " TORCH_VERSION " opens",
                    "Convert the detector again with the torch that is installed here.", [&] {
                      // The library itself does not make torch set up the device.
                      at::globalContext().lazyInitDevice(device_.type());
                      const auto guard = on(device_);  // because the library changes the device
                      return make_runner(file_.path(), device_);
                    });
}

std::vector<at::Tensor> AotInductorEngine::run(at::ArrayRef<at::Tensor> inputs) {
  conditions_.check(inputs);
  const bool is_nan = loses_nan_ && any_holds_nan(inputs);
  std::optional<ThreadsGuard> threads;
  if (device_.is_cpu()) threads.emplace(threads_);
  const auto guard = on(device_);  // because the runner uses the current stream of the current device
  return guarded("run", "the segment to run", "Pass inputs like those that the segment gets in the detector.", [&] {
    std::vector<at::Tensor> results = runner_->run(inputs.vec());
    TORCH_CHECK(results.size() == outputs_, results.size(), " outputs, but the artifact's spec has ", outputs_);
    std::vector<at::Tensor> outputs;
    for (const at::Tensor& result : results) outputs.push_back(owned(result));
    if (is_nan) fill_with_nan(outputs);
    return outputs;
  });
}

std::string AotInductorEngine::description() const {
  const std::string where = device_.is_cpu() ? std::to_string(threads_) + " threads" : device_.str();
  return std::string("aot_inductor ") + TORCH_VERSION + ", " + precision_ + ", " + where;
}

}  // namespace hybrid_rt::aot_inductor
