#include "hybrid_rt/plugin/backend.h"

#include <algorithm>
#include <charconv>

#include "engine.h"
#include "hybrid_rt/plugin/malformed.h"
#include "library.h"

// OpenVINO on the CPU. The artifact is the IR (xml and weights), which is compiled for this machine when it is loaded.
// An exported blob would be tied to one version and one instruction set.

namespace hybrid_rt::openvino {
namespace {

// Blobs for the bundle's own head if it reads only the sizes of some outputs: a model that returns their shapes, and
// the positions of these outputs. hybrid_rt/backends/openvino/sizes_only.py writes both.
constexpr const char* kModelForHead = "head_xml";
constexpr const char* kSizesOnly = "head_sizes_only";

bool has_blob(const ArtifactSpec& spec, const char* name) {
  return std::any_of(spec.blobs.begin(), spec.blobs.end(), [&](const BlobSpec& blob) { return blob.name == name; });
}

std::vector<bool> sizes_only(const ArtifactSpec& spec, const at::Tensor& text) {
  std::vector<bool> found(spec.outputs.size(), false);
  const auto* at = static_cast<const char*>(text.const_data_ptr());
  const char* const end = at + text.numel();
  while (at != end) {
    if (*at == ' ') {
      ++at;
      continue;
    }
    size_t position = 0;
    const auto [next, status] = std::from_chars(at, end, position);
    if (status != std::errc() || position >= found.size()) {
      throw malformed("openvino", std::string("artifact, blob '") + kSizesOnly + "'",
                      "positions of its " + std::to_string(found.size()) + " outputs",
                      "'" + std::string(at, std::min<size_t>(static_cast<size_t>(end - at), 40)) + "'");
    }
    found[position] = true;
    at = next;
  }
  return found;
}

class OpenVinoBackend : public Backend {
 public:
  Availability availability() override { return Library::instance().availability({"cpu"}); }

  std::shared_ptr<Engine> load(const ArtifactSpec& spec, const BlobMap& blobs, const EngineOptions& options) override {
    Library::instance().require_open("OpenVINO");
    const bool is_for_head = has_blob(spec, kModelForHead) && has_blob(spec, kSizesOnly);
    const at::Tensor& xml = blobs.at(is_for_head ? kModelForHead : "xml");
    auto without_values =
        is_for_head ? sizes_only(spec, blobs.at(kSizesOnly)) : std::vector<bool>(spec.outputs.size(), false);
    return std::make_shared<OpenVinoEngine>(spec, xml, blobs.at("weights"), std::move(without_values), options);
  }
};

}  // namespace

HYBRID_RT_PLUGIN("openvino", OpenVinoBackend)

}  // namespace hybrid_rt::openvino
