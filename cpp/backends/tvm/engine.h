#pragma once

#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "hybrid_rt/engine.h"
#include "hybrid_rt/plugin/conditions.h"
#include "hybrid_rt/plugin/library_file.h"
#include "hybrid_rt/specs.h"
#include "library.h"
#include "worker.h"

namespace hybrid_rt::tvm {

/// A compiled library and a pool of virtual machines that run it, one per concurrent call, because a virtual machine
/// has one call stack. Inputs are read in place. Outputs are copied, because TVM may return an input, a weight, or the
/// same result twice.
class TvmEngine : public Engine {
 public:
  TvmEngine(const ArtifactSpec& spec, const at::Tensor& library, Conditions conditions, const EngineOptions& options);

  std::vector<at::Tensor> run(at::ArrayRef<at::Tensor> inputs) override;
  std::string description() const override { return description_; }

 private:
  /// A virtual machine and its thread. TVM keeps a pool of threads for each calling thread, whose size can't be changed
  /// later, and pins the caller to some cores. With a thread of our own, the caller is unaffected, and a call uses
  /// options.threads threads, including the virtual machine's. TVM_NUM_THREADS has no effect.
  struct Machine {
    Machine(const std::string& kind, const std::function<void()>& prepare) : thread(kind, prepare) {}

    Worker thread;
    Value module;
    Value main;
  };
  class Lease;

  std::unique_ptr<Machine> make_machine() const;
  at::Tensor own(const TVMFFIAny& output, const TensorSpec& spec) const;

  Conditions conditions_;
  std::vector<TensorSpec> outputs_;
  int threads_;
  LibraryFile file_;
  Value library_;  // unloaded before its file is closed
  std::string description_;

  std::mutex mutex_;  // guards the members below
  std::vector<std::unique_ptr<Machine>> idle_;
};

}  // namespace hybrid_rt::tvm
