#include "torchscript/script_engine.h"

#include <ATen/Parallel.h>
#include <ATen/ops/full.h>
#include <ATen/record_function.h>

#include <limits>
#include <nlohmann/json.hpp>

#include "bundle/manifest.h"
#include "common/json_text.h"
#include "engine/devices.h"
#include "engine/input_check.h"
#include "hybrid_rt/error.h"
#include "hybrid_rt/plugin/malformed.h"

namespace hybrid_rt {
namespace {

std::string named(const ScriptEngine::Fields& fields, const std::string& name) {
  const auto found = fields.find(name);
  if (found == fields.end()) throw malformed("engine", "state", "a field '" + name + "'", "none");
  return found->value();
}

std::vector<std::string> segments_from(const std::string& text) {
  const auto names = parse_json(text);
  try {
    auto segments = names.get<std::vector<std::string>>();
    if (!segments.empty()) return segments;
  } catch (const nlohmann::json::exception&) {  // reported below
  }
  throw malformed("engine", "state, field 'segments'", "a JSON array of at least one name", text.substr(0, 80));
}

/// Converts the fields of version 1 to version 2.
ScriptEngine::Fields upgraded_from_version_1(const ScriptEngine::Fields& fields) {
  ScriptEngine::Fields upgraded;
  upgraded.insert("segments", nlohmann::json(segments_of_version_1(named(fields, "segment")))
                                  .dump(-1, ' ', false, nlohmann::json::error_handler_t::replace));
  for (const auto& field : fields) {
    if (field.key() != "segment") upgraded.insert(field.key(), field.value());
  }
  return upgraded;
}

/// Returns a stand-in for an output whose values the engine does not write because no operator of the head reads them:
/// a tensor on the engine's device whose elements are all the same number in memory, NaN, so that any use would be
/// noticed.
at::Tensor stand_in(const at::Tensor& output, c10::Device device) {
  const auto options = at::TensorOptions(output.scalar_type()).device(device);
  const double value = c10::isFloatingType(output.scalar_type()) ? std::numeric_limits<double>::quiet_NaN() : 0.0;
  return at::full({}, value, options).expand(output.sizes());
}

}  // namespace

ScriptEngine::ScriptEngine(Fields fields, std::vector<at::Tensor> blobs)
    : fields_(std::move(fields)),
      segments_(segments_from(named(fields_, "segments"))),
      name_(engine_name(segments_)),
      specs_(ArtifactSpec::list_from_json(named(fields_, "variants"))),
      table_(name_, TableEntry::list_from_json(named(fields_, "table")), std::move(blobs)) {
  table_.check(specs_);
}

ScriptEngine::State ScriptEngine::state() const { return {kStateVersion, fields_, table_.all()}; }

c10::intrusive_ptr<ScriptEngine> ScriptEngine::from_state(State state) {
  auto& [version, fields, blobs] = state;
  if (version == 1) {
    fields = upgraded_from_version_1(fields);
  } else if (version != kStateVersion) {
    throw Error(ErrorKind::kBundle, "engine", "state version", "1 or " + std::to_string(kStateVersion),
                std::to_string(version),
                version > kStateVersion ? "Upgrade hybrid_rt: the file was made by a newer version."
                                        : "Convert the detector again: the file is too old.");
  }
  return c10::make_intrusive<ScriptEngine>(std::move(fields), std::move(blobs));
}

ScriptEngine::PreparedPointer ScriptEngine::make(const Preference& preference, const EngineOptions& options,
                                                 const Machine& machine) const {
  auto next = std::make_shared<Prepared>();
  next->options = options;
  next->options.device = with_index(options.device);
  if (next->options.threads == 0) next->options.threads = at::get_num_threads();
  next->preference = preference;
  next->chosen = choose_engine(name_, specs_, table_, preference, next->options, machine);
  return next;
}

void ScriptEngine::prepare(const Preference& preference, const EngineOptions& options, const Machine& machine) {
  PreparedPointer next = make(preference, options, machine);
  std::vector<PreparedPointer> only{std::move(next)};
  const std::lock_guard lock(mutex_);
  prepared_.swap(only);
}

ScriptEngine::PreparedPointer ScriptEngine::prepared() const {
  const std::lock_guard lock(mutex_);
  return prepared_.empty() ? nullptr : prepared_.front();
}

ScriptEngine::PreparedPointer ScriptEngine::prepared(c10::Device device) const {
  const std::lock_guard lock(mutex_);
  for (const PreparedPointer& each : prepared_) {
    if (each->options.device == device) return each;
  }
  return nullptr;
}

ScriptEngine::PreparedPointer ScriptEngine::prepared_for(c10::Device device) {
  const std::lock_guard preparing(preparing_);
  if (PreparedPointer ready = prepared(device)) return ready;
  const PreparedPointer last = prepared();
  // For devices that no engine supports, the refusal names the device that the engine was prepared for. Engines name
  // their devices themselves, and a device of torch's kind PrivateUse1 may have CUDA's name.
  const bool is_known = device.is_cpu() || c10::DeviceTypeName(device.type(), /*lower_case=*/true) == "cuda";
  if (last && !is_known) return last;
  EngineOptions options = last ? last->options : EngineOptions{};
  options.device = is_known ? device : c10::Device(c10::kCPU);
  PreparedPointer next = make(last ? last->preference : preference_from(""), options, Machine::here());
  const std::lock_guard lock(mutex_);
  prepared_.insert(prepared_.begin(), next);
  return next;
}

std::vector<at::Tensor> ScriptEngine::run(const std::vector<at::Tensor>& inputs) {
  const bool has_device = !inputs.empty() && inputs.front().defined();
  const PreparedPointer last = has_device ? nullptr : prepared();
  const c10::Device device = has_device ? inputs.front().device() : last ? last->options.device : c10::kCPU;
  PreparedPointer ready = prepared(device);
  if (!ready) ready = prepared_for(device);
  // Shows a profiler which engine a call of the op ran. Name and inputs are read only if there is a profiler.
  RECORD_FUNCTION("hybrid_rt engine " + name_, std::vector<c10::IValue>(inputs.begin(), inputs.end()));
  std::vector<at::Tensor> outputs =
      run_checked(*ready->chosen.engine, name_, specs_[ready->chosen.index], ready->options.device, inputs);
  for (at::Tensor& output : outputs) {
    if (output.defined() && output.is_meta()) output = stand_in(output, ready->options.device);
  }
  return outputs;
}

EngineChoice ScriptEngine::choice() const {
  EngineChoice choice;
  choice.name = name_;
  choice.segments = segments_;
  if (const auto ready = prepared()) {
    const ArtifactSpec& spec = specs_[ready->chosen.index];
    choice.backend = spec.backend;
    choice.precision = spec.precision;
    choice.description = ready->chosen.engine->description();
    choice.variants = ready->chosen.variants;
  }
  return choice;
}

std::string to_json(const EngineChoice& choice) {
  nlohmann::json variants = nlohmann::json::array();
  for (const VariantCheck& variant : choice.variants) {
    variants.push_back({{"backend", variant.backend},
                        {"precision", variant.precision},
                        {"chosen", variant.chosen},
                        {"refusal", variant.refusal}});
  }
  const nlohmann::json document = {
      {"engine", choice.name},         {"segments", choice.segments},       {"backend", choice.backend},
      {"precision", choice.precision}, {"description", choice.description}, {"variants", std::move(variants)}};
  return document.dump(-1, ' ', false, decltype(document)::error_handler_t::replace);
}

}  // namespace hybrid_rt
