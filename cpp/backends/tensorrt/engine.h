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

/// A TensorRT engine on one device. Calls of several threads and streams run in it at once, each in the stream that is
/// the current one of its thread; a call returns when its work is in the stream. Inputs and outputs are torch's memory,
/// with no copy, but for CUDA graphs (see graph_cache.h). Scratch memory comes from torch's allocator for each call.
class TensorRtEngine : public Engine {
 public:
  /// Throws Error(kBackend) with the vendor's message, Error(kBundle) if the engine is not what its spec says.
  TensorRtEngine(const ArtifactSpec& spec, const Library& library, const at::Tensor& engine, Bindings bindings,
                 c10::Device device, const GraphOptions& graphs);
  ~TensorRtEngine() override;

  std::vector<at::Tensor> run(at::ArrayRef<at::Tensor> inputs) override;
  std::string description() const override { return description_; }

 private:
  void check_against(const ArtifactSpec& spec) const;
  std::vector<at::Tensor> run_full(at::ArrayRef<at::Tensor> inputs);
  /// Of what is counted there is none: TensorRT runs on one, and nothing of its result is given on.
  std::vector<at::Tensor> run_empty(at::ArrayRef<at::Tensor> inputs);

  const Library& library_;
  Bindings bindings_;
  c10::Device device_;
  std::vector<c10::ScalarType> output_dtypes_;
  std::vector<bool> is_counted_;  // outputs whose first dimension counts
  std::string description_;
  RuntimeCacheFile cache_file_;
  std::unique_ptr<VendorEngine> engine_;
  ContextPool contexts_;
  std::unique_ptr<GraphCache> graphs_;  // null: none are used
};

}  // namespace hybrid_rt::tensorrt
