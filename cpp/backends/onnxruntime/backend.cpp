#include "hybrid_rt/plugin/backend.h"

#include <algorithm>

#include "engine.h"
#include "library.h"
#include "providers.h"

// ONNX Runtime. The artifact is an ONNX model and its weights, optimised for this machine when it is loaded.

namespace hybrid_rt::onnxruntime {
namespace {

class OnnxRuntimeBackend : public Backend {
 public:
  Availability availability() override {
    const Library& library = Library::instance();
    if (!library.is_open()) return {false, library.reason(), "", {}};
    const std::vector<std::string>& providers = library.providers();
    const bool has_cuda = std::find(providers.begin(), providers.end(), "CUDA") != providers.end();
    return {true, "", library.version(),
            has_cuda ? std::vector<std::string>{"cpu", "cuda"} : std::vector<std::string>{"cpu"}};
  }

  std::optional<std::string> refusal(const ArtifactSpec& /*spec*/, const EngineOptions& options) override {
    std::string reason = refusal_of(wanted_providers(), options.device);
    if (reason.empty()) return std::nullopt;
    return reason;
  }

  std::shared_ptr<Engine> load(const ArtifactSpec& spec, std::vector<at::Tensor> blobs,
                               const EngineOptions& options) override {
    Library::instance().require_open("ONNX Runtime");
    const auto bytes = [&](std::string_view name) {
      return blobs.at(static_cast<size_t>(&spec.blob(name) - spec.blobs.data()));
    };
    return std::make_shared<OnnxRuntimeEngine>(spec, bytes("model"), bytes("weights"), options);
  }

  std::string settings() override {
    std::string names;
    for (const std::string& name : wanted_providers()) names += name + ",";
    return names;
  }
};

}  // namespace

HYBRID_RT_PLUGIN("onnxruntime", OnnxRuntimeBackend)

}  // namespace hybrid_rt::onnxruntime
