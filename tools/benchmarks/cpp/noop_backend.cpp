#include "hybrid_rt/plugin/backend.h"

namespace hybrid_rt {
namespace {

class NoopEngine : public Engine {
 public:
  std::vector<at::Tensor> run(at::ArrayRef<at::Tensor> inputs) override { return inputs.vec(); }
  std::string description() const override { return "noop"; }
};

class NoopBackend : public Backend {
 public:
  Availability availability() override { return {true, "", "1", {"cpu"}}; }
  std::shared_ptr<Engine> load(const ArtifactSpec&, const BlobMap&, const EngineOptions&) override {
    return std::make_shared<NoopEngine>();
  }
};

}  // namespace

HYBRID_RT_PLUGIN("noop", NoopBackend)

}  // namespace hybrid_rt
