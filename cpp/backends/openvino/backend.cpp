#include "hybrid_rt/plugin/backend.h"

#include "engine.h"
#include "library.h"

// OpenVINO on the CPU. The artifact is the IR (xml and weights), compiled for this machine when it is loaded: an
// exported blob would be tied to one version and one instruction set.

namespace hybrid_rt::openvino {
namespace {

class OpenVinoBackend : public Backend {
 public:
  Availability availability() override {
    const Library& library = Library::instance();
    if (!library.is_open()) return {false, library.reason(), "", {}};
    return {true, "", library.version(), {"cpu"}};
  }

  std::optional<std::string> refusal(const ArtifactSpec& /*spec*/, const EngineOptions& options) override {
    if (options.device.is_cpu()) return std::nullopt;
    return "runs on cpu, not on " + options.device.str();
  }

  std::shared_ptr<Engine> load(const ArtifactSpec& spec, std::vector<at::Tensor> blobs,
                               const EngineOptions& options) override {
    Library::instance().require_open("OpenVINO");
    const auto bytes = [&](std::string_view name) {
      return blobs.at(static_cast<size_t>(&spec.blob(name) - spec.blobs.data()));
    };
    return std::make_shared<OpenVinoEngine>(spec, bytes("xml"), bytes("weights"), options);
  }
};

}  // namespace

HYBRID_RT_PLUGIN("openvino", OpenVinoBackend)

}  // namespace hybrid_rt::openvino
