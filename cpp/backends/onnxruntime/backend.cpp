#include "hybrid_rt/plugin/backend.h"

#include <algorithm>

#include "engine.h"
#include "library.h"
#include "providers.h"

// ONNX Runtime. The artifact is an ONNX model and its weights, which is optimised for this machine when it is loaded.

namespace hybrid_rt::onnxruntime {
namespace {

class OnnxRuntimeBackend : public Backend {
 public:
  Availability availability() override {
    const Library& library = Library::instance();
    const std::vector<std::string>& providers = library.providers();
    std::vector<std::string> devices{"cpu"};
    if (std::find(providers.begin(), providers.end(), "CUDA") != providers.end()) devices.emplace_back("cuda");
    return library.availability(std::move(devices));
  }

  std::optional<std::string> refusal(const ArtifactSpec& /*spec*/, const EngineOptions& options) override {
    std::string reason = refusal_of(wanted_providers(), options.device);
    if (reason.empty()) return std::nullopt;
    return reason;
  }

  std::shared_ptr<Engine> load(const ArtifactSpec& spec, const BlobMap& blobs, const EngineOptions& options) override {
    Library::instance().require_open("ONNX Runtime");
    return std::make_shared<OnnxRuntimeEngine>(spec, blobs.at("model"), blobs.at("weights"), options);
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
