#include <hybrid_rt/log.h>
#include <hybrid_rt/plugin/backend.h>
#include <torch/script.h>

#include <sstream>

// The run half: the traced segment in torch's interpreter. Nothing is optimised; this example shows what a backend
// needs.

namespace {

class InterpreterEngine : public hybrid_rt::Engine {
 public:
  explicit InterpreterEngine(torch::jit::Module module) : module_(std::move(module)) {}

  std::vector<at::Tensor> run(at::ArrayRef<at::Tensor> inputs) override {
    const at::NoGradGuard no_grad;
    try {
      const c10::IValue result = module_.forward(std::vector<c10::IValue>(inputs.begin(), inputs.end()));
      std::vector<at::Tensor> outputs;
      // Copies the outputs: one may be an input or a weight, and the caller may write into it.
      for (const c10::IValue& output : result.toTupleRef().elements()) {
        outputs.push_back(output.toTensor().clone(at::MemoryFormat::Contiguous));
      }
      return outputs;
    } catch (const std::exception& error) {
      throw hybrid_rt::Error(hybrid_rt::ErrorKind::kBackend, "interpreter", "run", "the segment to run", error.what(),
                             "");
    }
  }

  std::string description() const override { return std::string("interpreter ") + TORCH_VERSION; }

 private:
  torch::jit::Module module_;
};

class InterpreterBackend : public hybrid_rt::Backend {
 public:
  hybrid_rt::Availability availability() override { return {true, "", TORCH_VERSION, {"cpu"}}; }

  std::shared_ptr<hybrid_rt::Engine> load(const hybrid_rt::ArtifactSpec& /*spec*/, const hybrid_rt::BlobMap& blobs,
                                          const hybrid_rt::EngineOptions& options) override {
    const at::Tensor& bytes = blobs.at("traced");
    std::istringstream stream(
        std::string(static_cast<const char*>(bytes.const_data_ptr()), static_cast<size_t>(bytes.numel())));
    try {
      auto engine = std::make_shared<InterpreterEngine>(torch::jit::load(stream, options.device));
      hybrid_rt::log(hybrid_rt::LogLevel::kDebug, "interpreter: an engine was made");
      return engine;
    } catch (const std::exception& error) {
      throw hybrid_rt::Error(hybrid_rt::ErrorKind::kBackend, "interpreter", "artifact", "a traced module", error.what(),
                             "Convert the detector again.");
    }
  }
};

HYBRID_RT_PLUGIN("interpreter", InterpreterBackend)

}  // namespace
