#pragma once

#include <string>
#include <vector>

#include "handle.h"
#include "hybrid_rt/engine.h"
#include "hybrid_rt/plugin/output_memory.h"
#include "hybrid_rt/plugin/shape_caching_engine.h"
#include "hybrid_rt/specs.h"

namespace hybrid_rt::onnxruntime {

/// A session. Several threads may call it concurrently. Inputs and outputs are not copied: ONNX Runtime reads and
/// writes the tensors' own memory.
class OnnxRuntimeEngine : public ShapeCachingEngine {
 public:
  /// Neither blob is needed afterwards, because the session has copies, arranged for this machine.
  OnnxRuntimeEngine(const ArtifactSpec& spec, const at::Tensor& model, const at::Tensor& weights,
                    const EngineOptions& options);
  ~OnnxRuntimeEngine() override;

  std::string description() const override { return description_; }

 private:
  CopiedOutputs run_and_copy(at::ArrayRef<at::Tensor> inputs) override;
  std::vector<at::Tensor> run_into(const std::vector<Shape>& shapes, at::ArrayRef<at::Tensor> inputs) override;
  /// ONNX Runtime creates the `outputs` that are null, in CPU memory.
  void run_session(at::ArrayRef<at::Tensor> inputs, std::vector<Handle<Value>>& outputs) const;
  Handle<Value> wrap(const at::Tensor& tensor) const;

  c10::Device device_;
  bool loses_nan_;  // NaN in the inputs gets lost, so the outputs are set to NaN
  std::vector<c10::ScalarType> output_dtypes_;
  Handle<MemoryInfo> memory_;
  Handle<Session> session_;
  std::vector<std::string> input_names_;
  std::vector<std::string> output_names_;
  std::string description_;
  OutputMemory output_memory_;
  int process_;  // id of the process that created the session
};

}  // namespace hybrid_rt::onnxruntime
