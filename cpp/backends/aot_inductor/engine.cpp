#include "engine.h"

#include <ATen/Parallel.h>
#include <omp.h>

#include <algorithm>
#include <thread>

#include "hybrid_rt/error.h"

namespace hybrid_rt::aot_inductor {
namespace {

/// The compiled loops ask OpenMP how many threads the calling thread may use; so do ATen's and oneDNN's functions that
/// they call. at::set_num_threads would also change what threads that come later start with.
class ThreadsGuard {
 public:
  explicit ThreadsGuard(int threads) : before_(at::get_num_threads()) {  // asked first: torch sets up the thread then
    if (threads != before_) omp_set_num_threads(threads);
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

}  // namespace

AotInductorEngine::AotInductorEngine(const ArtifactSpec& spec, const at::Tensor& library, Conditions conditions,
                                     const EngineOptions& options)
    : conditions_(std::move(conditions)),
      outputs_(spec.outputs.size()),
      precision_(spec.precision),
      threads_(options.threads > 0 ? options.threads : at::get_num_threads()),
      file_(spec.blob("library").sha256, library) {
  make_torch_visible();
  // One runner for each call that can make progress at the same time; they share the weights.
  const size_t runners = std::max(2U, std::thread::hardware_concurrency());
  runner_ = guarded("artifact", "a library that torch " TORCH_VERSION " opens",
                    "Convert the detector again with the torch that is installed here.", [&] {
                      return std::make_unique<torch::inductor::AOTIModelContainerRunnerCpu>(file_.path(), runners);
                    });
}

std::vector<at::Tensor> AotInductorEngine::run(at::ArrayRef<at::Tensor> inputs) {
  conditions_.check(inputs);
  const ThreadsGuard guard(threads_);
  return guarded("run", "the segment to run", "Are the inputs such as the segment takes in the detector?", [&] {
    std::vector<at::Tensor> results = runner_->run(inputs.vec());
    TORCH_CHECK(results.size() == outputs_, results.size(), " outputs where the artifact tells of ", outputs_);
    std::vector<at::Tensor> outputs;
    for (const at::Tensor& result : results) outputs.push_back(owned(result));
    return outputs;
  });
}

std::string AotInductorEngine::description() const {
  return std::string("aot_inductor ") + TORCH_VERSION + ", " + precision_ + ", " + std::to_string(threads_) +
         " threads";
}

}  // namespace hybrid_rt::aot_inductor
