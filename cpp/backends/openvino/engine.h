#pragma once

#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "hybrid_rt/engine.h"
#include "hybrid_rt/plugin/output_memory.h"
#include "hybrid_rt/plugin/shape_caching_engine.h"
#include "hybrid_rt/specs.h"
#include "library.h"

namespace hybrid_rt::openvino {

/// Frees the object of a C handle.
struct Release {
  void operator()(ov_model_t* handle) const { Library::instance().functions().ov_model_free(handle); }
  void operator()(ov_compiled_model_t* handle) const { Library::instance().functions().ov_compiled_model_free(handle); }
  void operator()(ov_infer_request_t* handle) const { Library::instance().functions().ov_infer_request_free(handle); }
  void operator()(ov_tensor_t* handle) const { Library::instance().functions().ov_tensor_free(handle); }
};
template <typename T>
using Handle = std::unique_ptr<T, Release>;

/// An IR that is compiled once or several times, and a pool of requests, one per concurrent call. Inputs and outputs
/// are not copied: OpenVINO reads and writes the tensors' own memory.
class OpenVinoEngine : public ShapeCachingEngine {
 public:
  /// `weights` must stay unchanged, because the compiled models read them in place. `sizes_only` states for each output
  /// whether the model returns its shape, as int32, instead of its values. Such an output is a tensor without values,
  /// on torch's device "meta".
  OpenVinoEngine(const ArtifactSpec& spec, const at::Tensor& xml, at::Tensor weights, std::vector<bool> sizes_only,
                 const EngineOptions& options);

  std::string description() const override { return description_; }

 private:
  class Lease;

  /// An entry of the pool, for one call at a time.
  struct Place {
    size_t number = 0;                     ///< the first places have their own compiled models, later ones share them
    Handle<ov_infer_request_t> request{};  ///< created on first use
  };

  Handle<ov_infer_request_t> make_request(size_t place) const;
  void infer(ov_infer_request_t* request) const;
  static void set_inputs(ov_infer_request_t* request, at::ArrayRef<at::Tensor> inputs);
  /// If OpenVINO 2026.4 is told to write an output that shares memory with an input elsewhere, it takes the new memory
  /// for the input's and overwrites the input. Such outputs are always copied.
  CopiedOutputs run_and_copy(at::ArrayRef<at::Tensor> inputs) override;
  std::vector<at::Tensor> run_into(const std::vector<Shape>& shapes, at::ArrayRef<at::Tensor> inputs) override;

  at::Tensor weights_;
  bool loses_nan_;  // NaN in the inputs gets lost, so the outputs are set to NaN
  bool binds_threads_;
  std::vector<c10::ScalarType> output_dtypes_;
  std::vector<bool> output_is_scalar_;
  std::vector<bool> output_is_sizes_only_;
  std::vector<size_t> output_ranks_;
  std::vector<Handle<ov_compiled_model_t>> compiled_;  // destroyed before the weights that they read
  std::string description_;
  OutputMemory output_memory_;

  std::mutex mutex_;   // guards the members below
  size_t places_ = 0;  // number of places created
  std::vector<Place> idle_;
};

}  // namespace hybrid_rt::openvino
