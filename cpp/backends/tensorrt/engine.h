#pragma once

#include <memory>
#include <string>
#include <vector>

#include "bindings.h"
#include "context_pool.h"
#include "graph_cache.h"
#include "hybrid_rt/engine.h"
#include "hybrid_rt/specs.h"
#include "library.h"
#include "runtime_cache.h"

namespace hybrid_rt::tensorrt {

/// A TensorRT engine on one device. Calls from several threads run concurrently, each in its thread's current stream. A
/// call returns once its work is launched. Inputs and outputs use torch's memory without copies, except with CUDA
/// graphs (see graph_cache.h). Scratch memory comes from torch's allocator in each call.
class TensorRtEngine : public Engine {
 public:
  /// Throws Error(kBackend) with the vendor's message, or Error(kBundle) if the engine does not match its spec.
  TensorRtEngine(const ArtifactSpec& spec, const Library& library, const at::Tensor& engine, Bindings bindings,
                 c10::Device device, const GraphOptions& graphs);
  ~TensorRtEngine() override;

  std::vector<at::Tensor> run(at::ArrayRef<at::Tensor> inputs) override;
  std::string description() const override { return description_; }

 private:
  void check_against(const ArtifactSpec& spec) const;
  std::vector<at::Tensor> run_full(at::ArrayRef<at::Tensor> inputs);
  /// Runs a batch of size 0: TensorRT runs on a batch of one, and the outputs keep none of it.
  std::vector<at::Tensor> run_empty(at::ArrayRef<at::Tensor> inputs);

  const Library& library_;
  Bindings bindings_;
  c10::Device device_;
  std::vector<c10::ScalarType> output_dtypes_;
  std::vector<bool> is_counted_;  // outputs whose first dimension is the batch size
  std::string description_;
  RuntimeCacheFile cache_file_;
  std::unique_ptr<VendorEngine> engine_;
  ContextPool contexts_;
  std::unique_ptr<GraphCache> graphs_;  // null: CUDA graphs are off
};

}  // namespace hybrid_rt::tensorrt
