#pragma once

#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "hybrid_rt/engine.h"
#include "hybrid_rt/plugin/shape_caching_engine.h"
#include "hybrid_rt/specs.h"
#include "library.h"

namespace hybrid_rt::openvino {

/// Frees what a C handle stands for.
struct Release {
  void operator()(ov_model_t* handle) const { Library::instance().functions().ov_model_free(handle); }
  void operator()(ov_compiled_model_t* handle) const { Library::instance().functions().ov_compiled_model_free(handle); }
  void operator()(ov_infer_request_t* handle) const { Library::instance().functions().ov_infer_request_free(handle); }
  void operator()(ov_tensor_t* handle) const { Library::instance().functions().ov_tensor_free(handle); }
};
template <typename T>
using Handle = std::unique_ptr<T, Release>;

/// A compiled IR, once or more, and a pool of requests: as many as there were calls at one time. Inputs and outputs are
/// not copied: OpenVINO reads and writes the tensors' own memory.
class OpenVinoEngine : public ShapeCachingEngine {
 public:
  /// `weights` must stay unchanged: the compiled models read them where they are.
  /// `sizes_only` tells for each output whether the model returns its shape, as int32, instead of its values. Such an
  /// output is a tensor without values, on torch's device "meta".
  OpenVinoEngine(const ArtifactSpec& spec, const at::Tensor& xml, at::Tensor weights, std::vector<bool> sizes_only,
                 const EngineOptions& options);

  std::string description() const override { return description_; }

 private:
  class Lease;

  /// In the pool, for one call.
  struct Place {
    size_t number = 0;                     ///< the first ones have a compiled model each, further ones share these
    Handle<ov_infer_request_t> request{};  ///< null: to be made
  };

  Handle<ov_infer_request_t> make_request(size_t place) const;
  static void set_inputs(ov_infer_request_t* request, at::ArrayRef<at::Tensor> inputs);
  /// Told to write an output that shares memory elsewhere, OpenVINO 2026.4 takes that memory for the input's, and
  /// copies it over the input: such outputs are always copied.
  CopiedOutputs run_and_copy(at::ArrayRef<at::Tensor> inputs) override;
  std::vector<at::Tensor> run_into(const std::vector<Shape>& shapes, at::ArrayRef<at::Tensor> inputs) override;

  at::Tensor weights_;
  bool loses_nan_;  // in the inputs: the outputs are made NaN
  std::vector<c10::ScalarType> output_dtypes_;
  std::vector<bool> output_is_scalar_;
  std::vector<bool> output_is_sizes_only_;
  std::vector<size_t> output_ranks_;
  std::vector<Handle<ov_compiled_model_t>> compiled_;  // destroyed before the weights that they read
  std::string description_;

  std::mutex mutex_;   // guards what follows
  size_t places_ = 0;  // that were made
  std::vector<Place> idle_;
};

}  // namespace hybrid_rt::openvino
