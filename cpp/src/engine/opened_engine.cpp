#include "hybrid_rt/opened_engine.h"

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>

#include <algorithm>
#include <utility>

#include "bundle/archive.h"
#include "bundle/blob_table.h"
#include "bundle/recorded_inputs.h"
#include "bundle/signing.h"
#include "common/platform/free_memory.h"
#include "engine/devices.h"
#include "engine/engine_options.h"
#include "engine/input_check.h"
#include "engine/variants.h"
#include "hybrid_rt/error.h"
#include "hybrid_rt/plugin/conditions.h"

namespace hybrid_rt {
namespace {

at::Tensor as_bytes(const std::string& text) {
  at::Tensor bytes = at::empty({static_cast<int64_t>(text.size())}, at::TensorOptions(at::kByte));
  std::copy(text.begin(), text.end(), bytes.mutable_data_ptr<uint8_t>());
  return bytes;
}

/// Returns true if the tensors have every size that conditions may refer to.
bool have_dimensions(at::ArrayRef<at::Tensor> tensors, const std::vector<TensorSpec>& specs) {
  return std::equal(tensors.begin(), tensors.end(), specs.begin(), specs.end(),
                    [](const auto& tensor, const auto& spec) {
                      return tensor.defined() && tensor.dim() == static_cast<int64_t>(spec.min.size());
                    });
}

class EngineOfFile : public OpenedEngine {
 public:
  EngineOfFile(const StoredEngine& stored, const SizeConditions& conditions, ChosenEngine chosen, c10::Device device)
      : name_(stored.name()),
        segments_(stored.segments()),
        spec_(stored.variants[chosen.index]),
        of_inputs_(spec_.backend, as_bytes(conditions.inputs), spec_.inputs),
        of_outputs_(spec_.backend, as_bytes(conditions.outputs), spec_.outputs),
        chosen_(std::move(chosen)),
        device_(device) {}

  std::vector<at::Tensor> run(at::ArrayRef<at::Tensor> inputs) override {
    if (have_dimensions(inputs, spec_.inputs)) of_inputs_.check(inputs);  // other inputs are refused below
    std::vector<at::Tensor> outputs = run_checked(*chosen_.engine, name_, spec_, device_, inputs.vec());
    if (have_dimensions(outputs, spec_.outputs)) of_outputs_.check(outputs);
    return outputs;
  }

  std::string description() const override { return chosen_.engine->description(); }
  const std::string& name() const override { return name_; }
  const std::vector<std::string>& segments() const override { return segments_; }
  const ArtifactSpec& spec() const override { return spec_; }
  const std::vector<VariantCheck>& variants() const override { return chosen_.variants; }

 private:
  std::string name_;
  std::vector<std::string> segments_;
  ArtifactSpec spec_;
  Conditions of_inputs_;
  Conditions of_outputs_;
  ChosenEngine chosen_;
  c10::Device device_;
};

/// Returns the variants without the blobs for the bundle's own head: those omit the values of outputs that this head
/// does not read, but another head may.
std::vector<ArtifactSpec> with_all_values(std::vector<ArtifactSpec> variants) {
  for (ArtifactSpec& variant : variants) {
    auto& blobs = variant.blobs;
    blobs.erase(std::remove_if(blobs.begin(), blobs.end(),
                               [](const BlobSpec& blob) { return blob.name.compare(0, 5, "head_") == 0; }),
                blobs.end());
  }
  return variants;
}

/// Returns the engine of that name, or the engine with a segment of that name. Throws Error(kOption).
const StoredEngine& named(const Archive& file, const std::string& name) {
  std::string known;
  for (const StoredEngine& engine : file.manifest().engines) {
    const std::vector<std::string> segments = engine.segments();
    const bool has_segment = std::find(segments.begin(), segments.end(), name) != segments.end();
    if (has_segment || engine.name() == name) return engine;
    known += (known.empty() ? "" : ", ") + engine.name();
  }
  throw Error(ErrorKind::kOption, "bundle", file.path() + ", engine", "one of " + known, "'" + name + "'",
              "`hybrid-rt inspect` lists them.");
}

}  // namespace

std::vector<std::string> engine_names(const std::string& path) {
  const Archive file(path);
  std::vector<std::string> names;
  for (const StoredEngine& engine : file.manifest().engines) names.push_back(engine.name());
  return names;
}

std::shared_ptr<OpenedEngine> open_engine(const std::string& path, const std::string& name, const LoadOptions& given) {
  require_device(given.device);
  LoadOptions options = given;
  options.device = with_index(given.device);
  const auto file = std::make_shared<Archive>(path);
  check_trust(*file, options);
  const StoredEngine& stored = named(*file, name);
  const auto place = static_cast<size_t>(&stored - file->manifest().engines.data());
  const SizeConditions conditions = size_conditions(file->manifest_text(), place, path);
  const BlobTable table(stored.name(), stored.table, file);
  table.check(stored.variants);
  EngineOptions set_up = engine_options(options);
  if (set_up.threads == 0) set_up.threads = at::get_num_threads();
  ChosenEngine chosen =
      choose_engine(stored.name(), with_all_values(stored.variants), table,
                    preference_from(options.backend, options.strict, options.allow), set_up, Machine::here());
  platform::return_freed_memory();  // what the engine's compiler freed
  return std::make_shared<EngineOfFile>(stored, conditions, std::move(chosen), options.device);
}

}  // namespace hybrid_rt
