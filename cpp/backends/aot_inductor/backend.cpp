#include "hybrid_rt/plugin/backend.h"

#include "engine.h"

// AOTInductor. The artifact is the shared object that torch's inductor built, including weights and CUDA kernels. It is
// opened from memory. (Inductor's package, a .pt2, would be unpacked to a directory that some ways of ending the
// process leave behind.)

namespace hybrid_rt::aot_inductor {
namespace {

class AotInductorBackend : public Backend {
 public:
  Availability availability() override { return {true, "", TORCH_VERSION, {"cpu", "cuda"}}; }

  std::optional<std::string> refusal(const ArtifactSpec& spec, const EngineOptions& options) override {
    if (spec.device != "cpu" && spec.device != "cuda") {
      return "runs artifacts made for cpu and for cuda, not for " + spec.device;
    }
    const std::string device = c10::DeviceTypeName(options.device.type(), /*lower_case=*/true);
    if (device == spec.device) return std::nullopt;
    return "what was compiled for " + spec.device + " runs on " + spec.device + ", not on " + options.device.str() +
           "; convert the detector with device=\"" + device + "\"";
  }

  std::shared_ptr<Engine> load(const ArtifactSpec& spec, const BlobMap& blobs, const EngineOptions& options) override {
    return std::make_shared<AotInductorEngine>(spec, blobs.at("library"),
                                               Conditions(spec.backend, blobs.at("conditions"), spec.inputs),
                                               blobs.has("handles_nan"), options);
  }
};

}  // namespace

HYBRID_RT_PLUGIN("aot_inductor", AotInductorBackend)

}  // namespace hybrid_rt::aot_inductor
