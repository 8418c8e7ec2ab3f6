#include "hybrid_rt/plugin/backend.h"

#include "engine.h"
#include "library.h"

// OpenVINO on the CPU. The artifact is the IR (xml and weights), compiled for this machine when it is loaded: an
// exported blob would be tied to one version and one instruction set.

namespace hybrid_rt::openvino {
namespace {

class OpenVinoBackend : public Backend {
 public:
  Availability availability() override { return Library::instance().availability({"cpu"}); }

  std::shared_ptr<Engine> load(const ArtifactSpec& spec, const BlobMap& blobs, const EngineOptions& options) override {
    Library::instance().require_open("OpenVINO");
    return std::make_shared<OpenVinoEngine>(spec, blobs.at("xml"), blobs.at("weights"), options);
  }
};

}  // namespace

HYBRID_RT_PLUGIN("openvino", OpenVinoBackend)

}  // namespace hybrid_rt::openvino
