#include "hybrid_rt/plugin/backend.h"

#include "engine.h"
#include "library.h"

// Apache TVM on the CPU. The artifact is a shared library of machine code and weights, which TVM's virtual machine
// runs.

namespace hybrid_rt::tvm {
namespace {

class TvmBackend : public Backend {
 public:
  Availability availability() override { return Library::instance().availability({"cpu"}); }

  std::shared_ptr<Engine> load(const ArtifactSpec& spec, const BlobMap& blobs, const EngineOptions& options) override {
    Library::instance().require_open("TVM's runtime");
    return std::make_shared<TvmEngine>(spec, blobs.at("library"),
                                       Conditions(spec.backend, blobs.at("conditions"), spec.inputs), options);
  }
};

}  // namespace

HYBRID_RT_PLUGIN("tvm", TvmBackend)

}  // namespace hybrid_rt::tvm
