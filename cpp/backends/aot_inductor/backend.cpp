#include "hybrid_rt/backend.h"

#include "engine.h"

// AOTInductor on the CPU. The artifact is the shared object that torch's inductor made, weights and all; it is opened
// from memory. (The package, a .pt2, would be unpacked to a folder that some ways out of the process leave behind.)

namespace hybrid_rt::aot_inductor {
namespace {

class AotInductorBackend : public Backend {
 public:
  Availability availability() override { return {true, "", TORCH_VERSION, {"cpu"}}; }

  std::optional<std::string> refusal(const ArtifactSpec& spec, const EngineOptions& options) override {
    if (spec.device != "cpu") return "runs artifacts made for cpu, not for " + spec.device;
    if (options.device.is_cpu()) return std::nullopt;
    return "runs on cpu, not on " + options.device.str();
  }

  std::shared_ptr<Engine> load(const ArtifactSpec& spec, std::vector<at::Tensor> blobs,
                               const EngineOptions& options) override {
    const auto bytes = [&](std::string_view name) {
      return blobs.at(static_cast<size_t>(&spec.blob(name) - spec.blobs.data()));
    };
    return std::make_shared<AotInductorEngine>(spec, bytes("library"),
                                               Conditions(spec.backend, bytes("conditions"), spec.inputs), options);
  }
};

}  // namespace

HYBRID_RT_PLUGIN("aot_inductor", AotInductorBackend)

}  // namespace hybrid_rt::aot_inductor
