#include "script_engine.h"

#include <ATen/Parallel.h>
#include <ATen/core/grad_mode.h>

#include <nlohmann/json.hpp>

#include "dtypes.h"

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

void check_blobs(const std::string& segment, const std::vector<ArtifactSpec>& specs,
                 const std::vector<at::Tensor>& blobs) {
  for (const at::Tensor& blob : blobs) {
    if (blob.scalar_type() != at::kByte || !blob.device().is_cpu() || blob.dim() != 1 || !blob.is_contiguous()) {
      throw malformed("segment '" + segment + "', blobs", "contiguous one-dimensional uint8 CPU tensors",
                      "a " + std::to_string(blob.dim()) + "-dimensional " + name_of(blob.scalar_type()) +
                          " tensor on " + blob.device().str());
    }
  }
  for (const ArtifactSpec& spec : specs) {
    for (const BlobSpec& blob : spec.blobs) {
      const std::string subject = "segment '" + segment + "', blob '" + blob.name + "' of " + spec.backend;
      if (blob.index < 0 || blob.index >= static_cast<int64_t>(blobs.size())) {
        throw malformed(subject, "an index below " + std::to_string(blobs.size()), std::to_string(blob.index));
      }
      const int64_t size = blobs[static_cast<size_t>(blob.index)].numel();
      if (size != blob.size) {
        throw malformed(subject, std::to_string(blob.size) + " bytes", std::to_string(size));
      }
    }
  }
}

std::string shape_of(const at::Tensor& tensor) {
  std::string text;
  for (int64_t d = 0; d < tensor.dim(); ++d) text += (d ? "x" : "") + std::to_string(tensor.size(d));
  return text.empty() ? "a scalar" : text;
}

}  // namespace

ScriptEngine::ScriptEngine(Fields fields, std::vector<at::Tensor> blobs)
    : fields_(std::move(fields)),
      blobs_(std::move(blobs)),
      segment_(named(fields_, "segment")),
      specs_(ArtifactSpec::list_from_json(named(fields_, "variants"))) {
  check_blobs(segment_, specs_, blobs_);
}

ScriptEngine::State ScriptEngine::state() const { return {kStateVersion, fields_, blobs_}; }

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
  next->choice = choose_engine(segment_, specs_, blobs_, preference, next->options);
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
  check_inputs(inputs, *ready);
  const at::NoGradGuard no_grad;
  for (const at::Tensor& input : inputs) {
    if (input.is_contiguous()) continue;
    std::vector<at::Tensor> contiguous;
    for (const at::Tensor& each : inputs) contiguous.push_back(each.contiguous());
    return ready->choice.engine->run(contiguous);
  }
  return ready->choice.engine->run(inputs);
}

void ScriptEngine::check_inputs(const std::vector<at::Tensor>& inputs, const Prepared& prepared) const {
  const ArtifactSpec& spec = specs_[prepared.choice.index];
  const auto refuse = [&](const std::string& subject, const std::string& expected, const std::string& got,
                          const std::string& remedy) {
    throw Error(ErrorKind::kInput, spec.backend, "segment '" + segment_ + "', " + subject, expected, got, remedy);
  };
  if (inputs.size() != spec.inputs.size()) {
    refuse("inputs", std::to_string(spec.inputs.size()) + " tensors", std::to_string(inputs.size()),
           "Call it as the detector's own head does.");
  }
  for (size_t i = 0; i < inputs.size(); ++i) {
    const at::Tensor& input = inputs[i];
    const TensorSpec& expected = spec.inputs[i];
    const std::string subject = "input '" + expected.name + "'";
    if (!input.defined()) refuse(subject, to_string(expected), "an undefined tensor", "Pass a tensor.");
    if (input.scalar_type() != expected.dtype) {
      refuse(subject, name_of(expected.dtype), name_of(input.scalar_type()), "Convert the input before the call.");
    }
    if (input.device() != prepared.options.device) {
      refuse(subject, "a tensor on " + prepared.options.device.str(), "one on " + input.device().str(),
             "Move the input, or load the bundle with that device.");
    }
    if (input.dim() != static_cast<int64_t>(expected.min.size())) {
      refuse(subject, std::to_string(expected.min.size()) + " dimensions (" + to_string(expected) + ")",
             std::to_string(input.dim()) + " (" + shape_of(input) + ")", "Add or remove the batch dimension.");
    }
    for (int64_t d = 0; d < input.dim(); ++d) {
      const auto k = static_cast<size_t>(d);
      const int64_t size = input.size(d);
      if (size < expected.min[k] || (expected.max[k] != TensorSpec::kUnbounded && size > expected.max[k])) {
        refuse(subject + ", dimension " + std::to_string(d), to_string(expected), shape_of(input),
               "Resize the pictures, or convert again with shapes= that cover this size.");
      }
    }
  }
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
