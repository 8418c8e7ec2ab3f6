#include "hybrid_rt/plugin/backend.h"

#include "engine.h"
#include "library.h"

// Apache TVM on the CPU. The artifact is a shared library of machine code and weights, run by TVM's virtual machine.

namespace hybrid_rt::tvm {
namespace {

class TvmBackend : public Backend {
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
    Library::instance().require_open("TVM's runtime");
    const auto bytes = [&](std::string_view name) {
      return blobs.at(static_cast<size_t>(&spec.blob(name) - spec.blobs.data()));
    };
    return std::make_shared<TvmEngine>(spec, bytes("library"),
                                       Conditions(spec.backend, bytes("conditions"), spec.inputs), options);
  }
};

}  // namespace

HYBRID_RT_PLUGIN("tvm", TvmBackend)

}  // namespace hybrid_rt::tvm
