#pragma once

#include <c10/core/Device.h>
#include <torch/csrc/inductor/aoti_runner/model_container_runner.h>

#include <memory>
#include <string>
#include <vector>

#include "hybrid_rt/engine.h"
#include "hybrid_rt/plugin/conditions.h"
#include "hybrid_rt/specs.h"
#include "library.h"

namespace hybrid_rt::aot_inductor {

/// A segment as machine code, run by torch's own runner with a pool: further calls wait for a free entry. On CUDA a
/// call launches its work on the calling thread's current stream and does not wait for it.
class AotInductorEngine : public Engine {
 public:
  /// Throws Error(kBackend). On CPUs, NaN in the inputs makes all outputs NaN, unless the segment handles NaN itself:
  /// the activations of oneDNN lose it in some sizes.
  AotInductorEngine(const ArtifactSpec& spec, const at::Tensor& library, Conditions conditions, bool handles_nan,
                    const EngineOptions& options);

  std::vector<at::Tensor> run(at::ArrayRef<at::Tensor> inputs) override;

  std::string description() const override;

 private:
  Conditions conditions_;
  size_t outputs_;
  std::string precision_;
  c10::Device device_;
  int threads_;
  bool loses_nan_;
  SharedLibraryFile file_;  // outlives the runner, which unloads the library
  std::unique_ptr<torch::inductor::AOTIModelContainerRunner> runner_;
};

}  // namespace hybrid_rt::aot_inductor
