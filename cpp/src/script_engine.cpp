#include "script_engine.h"

#include <ATen/Parallel.h>

#include <nlohmann/json.hpp>

#include "input_check.h"

namespace hybrid_rt {
namespace {

Error malformed(const std::string& subject, const std::string& expected, const std::string& got) {
  return Error(ErrorKind::kBundle, "engine", subject, expected, got,
               "The file was altered, or written by another version of hybrid_rt: convert the detector again.");
}

std::string named(const ScriptEngine::Fields& fields, const std::string& name) {
  const auto found = fields.find(name);
  if (found == fields.end()) throw malformed("state", "a field '" + name + "'", "none");
  return found->value();
}

}  // namespace

ScriptEngine::ScriptEngine(Fields fields, std::vector<at::Tensor> blobs)
    : fields_(std::move(fields)),
      segment_(named(fields_, "segment")),
      specs_(ArtifactSpec::list_from_json(named(fields_, "variants"))),
      table_(segment_, TableEntry::list_from_json(named(fields_, "table")), std::move(blobs)) {
  table_.check(specs_);
}

ScriptEngine::State ScriptEngine::state() const { return {kStateVersion, fields_, table_.all()}; }

c10::intrusive_ptr<ScriptEngine> ScriptEngine::from_state(State state) {
  auto& [version, fields, blobs] = state;
  if (version != kStateVersion) {
    throw Error(ErrorKind::kBundle, "engine", "state version", std::to_string(kStateVersion), std::to_string(version),
                version > kStateVersion ? "The file was made by a newer hybrid_rt: upgrade this one."
                                        : "The file is too old: convert the detector again.");
  }
  return c10::make_intrusive<ScriptEngine>(std::move(fields), std::move(blobs));
}

void ScriptEngine::prepare(const Preference& preference, const EngineOptions& options) {
  auto next = std::make_shared<Prepared>();
  next->options = options;
  if (next->options.threads == 0) next->options.threads = at::get_num_threads();
  next->choice = choose_engine(segment_, specs_, table_, preference, next->options);
  const std::lock_guard lock(mutex_);
  prepared_ = std::move(next);
}

std::shared_ptr<const ScriptEngine::Prepared> ScriptEngine::prepared() const {
  const std::lock_guard lock(mutex_);
  return prepared_;
}

std::vector<at::Tensor> ScriptEngine::run(const std::vector<at::Tensor>& inputs) {
  auto ready = prepared();
  if (!ready) {
    const std::lock_guard lock(preparing_);
    ready = prepared();
    if (!ready) {
      prepare(preference_from(""), EngineOptions{});
      ready = prepared();
    }
  }
  return run_checked(*ready->choice.engine, segment_, specs_[ready->choice.index], ready->options.device, inputs);
}

std::string ScriptEngine::choice() const {
  const auto ready = prepared();
  nlohmann::json text{{"segment", segment_}, {"backend", ""}, {"precision", ""}, {"description", ""}};
  text["variants"] = nlohmann::json::array();
  if (ready) {
    const ArtifactSpec& spec = specs_[ready->choice.index];
    text["backend"] = spec.backend;
    text["precision"] = spec.precision;
    text["description"] = ready->choice.engine->description();
    for (const VariantCheck& variant : ready->choice.variants) {
      text["variants"].push_back({{"backend", variant.backend},
                                  {"precision", variant.precision},
                                  {"chosen", variant.chosen},
                                  {"refusal", variant.refusal}});
    }
  }
  return text.dump();
}

}  // namespace hybrid_rt
