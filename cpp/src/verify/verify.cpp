#include "hybrid_rt/verify.h"

#include <ATen/Parallel.h>
#include <c10/core/InferenceMode.h>

#include <nlohmann/json.hpp>
#include <utility>

#include "torchscript/golden.h"
#include "torchscript/load.h"
#include "verify/comparison.h"
#include "verify/latency.h"

namespace hybrid_rt {
namespace {

using Json = nlohmann::ordered_json;
template <class Value>
Json json_value(const Value& value) {
  return value;
}

Json json_value(const std::optional<double>& value) { return value ? Json(*value) : Json(nullptr); }

Json json_of(const BoxMatch& match) {
  Json json;
  visit_box_match_fields([&](const char* name, auto field) { json[name] = json_value(match.*field); });
  return json;
}

}  // namespace

Verification compare(const c10::IValue& expected, const c10::IValue& found, const Thresholds& thresholds,
                     const std::string& where) {
  Comparison comparison = compare_results(expected, found, thresholds, where);
  Verification verification;
  verification.thresholds = thresholds;
  verification.pictures = std::move(comparison.pictures);
  verification.outputs = std::move(comparison.outputs);
  for (Failure& failure : comparison.failures) verification.failures.push_back(std::move(failure.text));
  return verification;
}

namespace {

/// Sets torch's number of threads in this thread during its lifetime; 0 leaves it unchanged.
class Threads {
 public:
  explicit Threads(int count) : before_(at::get_num_threads()), is_set_(count > 0) {
    if (is_set_) at::set_num_threads(count);
  }
  ~Threads() {
    if (is_set_) at::set_num_threads(before_);
  }
  Threads(const Threads&) = delete;
  Threads& operator=(const Threads&) = delete;

 private:
  int before_;
  bool is_set_;
};

Verification verify_opened(const Archive& file, torch::jit::Module& module, c10::Device device,
                           const std::optional<Thresholds>& thresholds, const std::optional<LatencyOptions>& latency) {
  const c10::InferenceMode inference_mode;
  const auto& arguments = module.get_method("forward").function().getSchema().arguments();
  const GoldenSample golden = read_golden(file, arguments, device);
  const c10::IValue found = module.forward(golden.inputs);
  Verification verification = compare(golden.expected, found, thresholds.value_or(golden.thresholds), "golden sample");
  verification.precision = golden.precision;
  verification.compared = golden.compared;
  verification.engines = engines(module);
  if (latency) verification.latency = check_latency(file, module, golden.inputs, device, *latency);
  return verification;
}

}  // namespace

Verification verify(const std::string& path, torch::jit::Module& module, c10::Device device,
                    const std::optional<Thresholds>& thresholds, const std::optional<LatencyOptions>& latency) {
  return verify_opened(Archive(path), module, device, thresholds, latency);
}

Verification verify(const std::string& path, const LoadOptions& given, const std::optional<Thresholds>& thresholds,
                    const std::optional<LatencyOptions>& latency) {
  const auto file = std::make_shared<Archive>(path);
  LoadOptions options = given;
  if (latency) {
    check_latency_options(*latency);  // before the long work
    const LatencyContract contract = LatencyContract::from_manifest(file->manifest_text(), path);
    chosen_sizes(contract, *latency);
    if (options.threads == 0) options.threads = static_cast<int>(contract.threads);
  }
  const Threads threads(latency ? options.threads : 0);
  torch::jit::Module module = load(file, options);
  return verify_opened(*file, module, options.device, thresholds, latency);
}

std::string to_json(const Verification& verification) {
  Json document = {{"passed", verification.passed()}, {"precision", verification.precision}};
  document["engines"] = Json::object();
  for (const EngineChoice& engine : verification.engines) document["engines"][engine.name] = engine.description;
  document["pictures"] = Json::array();
  for (const BoxMatch& match : verification.pictures) document["pictures"].push_back(json_of(match));
  document["tensors"] = Json::array();
  for (const OutputError& error : verification.outputs) {
    document["tensors"].push_back(
        {{"output", error.output}, {"relative_error", error.relative_error}, {"cosine", error.cosine}});
  }
  document["failures"] = verification.failures;
  for (const ThresholdField& field : kThresholdFields) {
    document["thresholds"][field.name] = verification.thresholds.*field.value;
  }
  if (verification.latency) document["latency"] = Json::parse(to_json(*verification.latency));
  return document.dump(-1, ' ', false, Json::error_handler_t::replace);
}

}  // namespace hybrid_rt
