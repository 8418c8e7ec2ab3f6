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

namespace hybrid_rt::aot_inductor {
namespace {

/// True in the thread that a forked process begins with. OpenMP still counts on the threads that this one had in the
/// parent, and would wait for them for ever.
thread_local bool was_forked = false;

void watch_forks() {
  [[maybe_unused]] static const int registered = pthread_atfork(nullptr, nullptr, [] { was_forked = true; });
}

/// The compiled loops ask OpenMP how many threads the calling thread may use; so do ATen's and oneDNN's functions that
/// they call. at::set_num_threads would also change what threads that come later start with.
class ThreadsGuard {
 public:
  explicit ThreadsGuard(int threads) : before_(at::get_num_threads()) {  // asked first: torch sets up the thread then
    const int wanted = was_forked ? 1 : threads;
    if (wanted != before_) omp_set_num_threads(wanted);
  }
  ThreadsGuard(const ThreadsGuard&) = delete;
  ThreadsGuard& operator=(const ThreadsGuard&) = delete;
  ~ThreadsGuard() { omp_set_num_threads(before_); }

 private:
  int before_;
};

/// The caller may write into an output, which can be an input, a weight or another output as it is, or a view of one.
at::Tensor owned(const at::Tensor& output) {
  const bool is_shared = output.use_count() > 1 || output.storage().use_count() > 1;
  return is_shared ? output.clone(at::MemoryFormat::Contiguous) : output.contiguous();
}

/// Calls `work`; what torch throws becomes an error of ours.
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

/// The calling thread's device while it is in scope; nothing is switched for a CPU.
c10::OptionalDeviceGuard on(c10::Device device) {
  return c10::OptionalDeviceGuard(device.is_cpu() ? std::nullopt : std::make_optional(device));
}

/// How many calls can make progress at the same time: a runner each. They share the weights.
size_t runners_for(c10::Device device) {
  if (device.is_cpu()) return std::max(2U, std::thread::hardware_concurrency());
  // Calls take them in turns, and each loads the kernels in its first one. Two keep the GPU busy: one runs while the
  // next is put on a stream.
  return 2;
}

/// torch's runner for a kind of device. Of CUDA's nothing is linked: libtorch_cuda names it in torch's list.
std::unique_ptr<torch::inductor::AOTIModelContainerRunner> make_runner(const std::string& path, c10::Device device) {
  const auto& known = torch::inductor::getAOTIModelRunnerRegistry();
  const auto found = known.find(c10::DeviceTypeName(device.type(), /*lower_case=*/true));
  TORCH_CHECK(found != known.end(), "torch has no runner for ", device);
  const std::string where = device.is_cpu() ? "cpu" : device.str();  // it knows no "cpu:0"
  return found->second(path, runners_for(device), where, /*bin_dir=*/"", /*run_single_threaded=*/false);
}

}  // namespace

AotInductorEngine::AotInductorEngine(const ArtifactSpec& spec, const at::Tensor& library, Conditions conditions,
                                     const EngineOptions& options)
    : conditions_(std::move(conditions)),
      outputs_(spec.outputs.size()),
      precision_(spec.precision),
      device_(options.device),
      threads_(options.threads > 0 ? options.threads : at::get_num_threads()),
      file_(spec.blob("library").sha256, library) {
  watch_forks();
  make_torch_visible(device_.type());
  runner_ = guarded("artifact", "a library that torch " TORCH_VERSION " opens",
                    "Convert the detector again with the torch that is installed here.", [&] {
                      // The library itself asks nobody whether torch has set up the device.
                      at::globalContext().lazyInitDevice(device_.type());
                      const auto guard = on(device_);  // the library changes it
                      return make_runner(file_.path(), device_);
                    });
}

std::vector<at::Tensor> AotInductorEngine::run(at::ArrayRef<at::Tensor> inputs) {
  conditions_.check(inputs);
  std::optional<ThreadsGuard> threads;
  if (device_.is_cpu()) threads.emplace(threads_);
  const auto guard = on(device_);  // the runner takes the current stream of the current device
  return guarded("run", "the segment to run", "Pass inputs like those that the segment gets in the detector.", [&] {
    std::vector<at::Tensor> results = runner_->run(inputs.vec());
    TORCH_CHECK(results.size() == outputs_, results.size(), " outputs, but the artifact's spec has ", outputs_);
    std::vector<at::Tensor> outputs;
    for (const at::Tensor& result : results) outputs.push_back(owned(result));
    return outputs;
  });
}

std::string AotInductorEngine::description() const {
  const std::string where = device_.is_cpu() ? std::to_string(threads_) + " threads" : device_.str();
  return std::string("aot_inductor ") + TORCH_VERSION + ", " + precision_ + ", " + where;
}

}  // namespace hybrid_rt::aot_inductor
