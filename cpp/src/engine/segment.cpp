#include "hybrid_rt/segment.h"

#include <ATen/Parallel.h>

#include <nlohmann/json.hpp>
#include <utility>

#include "bundle/archive.h"
#include "bundle/blob_table.h"
#include "engine/devices.h"
#include "engine/engine_options.h"
#include "engine/input_check.h"
#include "engine/variants.h"
#include "hybrid_rt/error.h"

namespace hybrid_rt {
namespace {

using nlohmann::json;

class OpenedSegment : public Segment {
 public:
  OpenedSegment(std::string name, ArtifactSpec spec, Choice choice, c10::Device device)
      : name_(std::move(name)), spec_(std::move(spec)), choice_(std::move(choice)), device_(device) {}

  std::vector<at::Tensor> run(at::ArrayRef<at::Tensor> inputs) override {
    return run_checked(*choice_.engine, name_, spec_, device_, inputs.vec());
  }

  std::string description() const override { return choice_.engine->description(); }
  const std::string& name() const override { return name_; }
  const ArtifactSpec& spec() const override { return spec_; }
  const std::vector<VariantCheck>& variants() const override { return choice_.variants; }

 private:
  std::string name_;
  ArtifactSpec spec_;
  Choice choice_;
  c10::Device device_;
};

json segments_of(const Archive& archive) {
  const json manifest = json::parse(archive.manifest(), nullptr, /*allow_exceptions=*/false);
  const auto found = manifest.is_object() ? manifest.find("segments") : manifest.end();
  if (found != manifest.end() && found->is_array()) {
    bool is_right = true;
    for (const json& segment : *found) {
      is_right = is_right && segment.is_object() && segment.contains("name") && segment.at("name").is_string() &&
                 segment.contains("variants") && segment.contains("table");
    }
    if (is_right) return *found;
  }
  throw Error(ErrorKind::kBundle, "bundle", archive.path() + ", manifest", "a list of segments", "something else",
              "Convert the detector again.");
}

}  // namespace

std::vector<std::string> segments(const std::string& path) {
  std::vector<std::string> names;
  for (const json& segment : segments_of(Archive(path))) names.push_back(segment.at("name").get<std::string>());
  return names;
}

std::shared_ptr<Segment> open_segment(const std::string& path, const std::string& name, const LoadOptions& given) {
  require_device(given.device);
  LoadOptions options = given;
  options.device = with_index(given.device);
  const auto file = std::make_shared<Archive>(path);
  std::string known;
  for (const json& segment : segments_of(*file)) {
    const auto found = segment.at("name").get<std::string>();
    known += (known.empty() ? "" : ", ") + found;
    if (found != name) continue;
    const auto specs = ArtifactSpec::list_from_json(segment.at("variants").dump());
    const BlobTable table(name, TableEntry::list_from_json(segment.at("table").dump()), file);
    table.check(specs);
    EngineOptions set_up = engine_options(options);
    if (set_up.threads == 0) set_up.threads = at::get_num_threads();
    Choice choice = choose_engine(name, specs, table, preference_from(options.backend, options.strict), set_up);
    const ArtifactSpec spec = specs[choice.index];
    return std::make_shared<OpenedSegment>(name, spec, std::move(choice), options.device);
  }
  throw Error(ErrorKind::kOption, "bundle", path + ", segment", "one of " + known, "'" + name + "'",
              "`hybrid-rt inspect` lists them.");
}

}  // namespace hybrid_rt
