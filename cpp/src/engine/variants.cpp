#include "engine/variants.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <cstdlib>
#include <functional>
#include <map>
#include <mutex>
#include <optional>
#include <sstream>

#include "common/fork.h"
#include "common/joined.h"
#include "engine/devices.h"
#include "hybrid_rt/backends.h"
#include "hybrid_rt/log.h"

namespace hybrid_rt {
namespace {

std::string describe(const ArtifactSpec& spec) { return spec.backend + " (" + spec.precision + ")"; }

/// Compares the text after "@" in a name with a variant's requirements: "8.6+8.9" or ">=8.0" with its compute
/// capabilities, "tensorrt==10.14.1" with one requirement's name and value. "+" stands for a comma, which separates
/// names.
bool is_required(const std::string& wanted, const ArtifactSpec& spec) {
  return std::any_of(spec.requirements.begin(), spec.requirements.end(), [&](const auto& requirement) {
    const auto& [name, value] = requirement;
    std::string text = value;
    std::replace(text.begin(), text.end(), ',', '+');
    return wanted == name + text || (name == "compute_capability" && wanted == text);
  });
}

bool is_meant(const std::string& wanted, const ArtifactSpec& spec) {
  const size_t at = wanted.find('@');
  if (at != std::string::npos && !is_required(wanted.substr(at + 1), spec)) return false;
  const std::string name = wanted.substr(0, at);
  return name == spec.backend || name == spec.backend + ":" + spec.precision;
}

std::string environment(const char* name) {
  const char* const value = std::getenv(name);
  return value == nullptr ? "" : value;
}

/// Splits names that are separated by commas.
std::vector<std::string> names_in(const std::string& text) {
  std::istringstream names(text);
  std::vector<std::string> found;
  for (std::string name; std::getline(names, name, ',');) {
    const size_t first = name.find_first_not_of(' ');
    if (first == std::string::npos) continue;
    found.push_back(name.substr(first, name.find_last_not_of(' ') - first + 1));
  }
  return found;
}

std::optional<std::string> device_refusal(const std::vector<std::string>& devices, c10::Device device) {
  const std::string kind = c10::DeviceTypeName(device.type(), /*lower_case=*/true);
  if (std::find(devices.begin(), devices.end(), kind) != devices.end()) return std::nullopt;
  return "runs on " + (devices.empty() ? "no device" : joined(devices, " and ")) + ", not on " + device.str();
}

/// A variant and, unless it is refused earlier, its backend.
struct Candidate {
  VariantCheck check;
  Backend* backend = nullptr;
};

/// Returns why a variant can't run, or nothing. Sets the candidate's backend once it is known.
std::optional<std::string> find_refusal(Candidate& candidate, const ArtifactSpec& spec, const EngineOptions& options,
                                        const Machine& machine) {
  const c10::Device device = options.device;
  const auto cuda_index = static_cast<size_t>(!device.is_cpu() && device.has_index() ? device.index() : 0);
  try {
    // A limit of the machine is reported before anything that can be installed.
    if (auto reason = unmet(spec, "", machine, cuda_index)) return reason;
    candidate.backend = &backend(spec.backend);
    const Availability availability = candidate.backend->availability();
    if (!availability.available) return availability.reason;
    if (auto reason = unmet(spec, availability.version, machine, cuda_index)) return reason;
    // The backend is asked first, because it may know how to make the variant run there.
    if (auto reason = candidate.backend->refusal(spec, options)) return reason;
    if (auto reason = device_refusal(availability.devices, device)) return reason;
    if (device.is_cuda() && cuda_index >= machine.cuda_devices.size()) {
      return machine.cuda_devices.empty() ? "there is no CUDA device: " + machine.no_cuda_reason
                                          : "there is no CUDA device " + std::to_string(cuda_index);
    }
    return std::nullopt;
  } catch (const Error& error) {
    return error.what();
  }
}

/// Checks each variant, in the file's order. None is chosen yet.
std::vector<Candidate> check_all(const std::vector<ArtifactSpec>& specs, const Preference& preference,
                                 const EngineOptions& options, const Machine& machine) {
  const std::vector<size_t> order = preference.order(specs);
  std::vector<Candidate> candidates;
  for (size_t i = 0; i < specs.size(); ++i) {
    Candidate candidate;
    candidate.check.backend = specs[i].backend;
    candidate.check.precision = specs[i].precision;
    if (!preference.allows(specs[i])) {
      candidate.check.refusal = "only '" + joined(preference.allowed, "', '") +
                                "' may run here: the policy of allow= or HYBRID_RT_ALLOW does not name it";
    } else if (std::find(order.begin(), order.end(), i) == order.end()) {
      candidate.check.refusal = "only '" + joined(preference.backends, "', '") + "' was requested";
    } else {
      candidate.check.refusal = find_refusal(candidate, specs[i], options, machine).value_or("");
    }
    candidates.push_back(std::move(candidate));
  }
  return candidates;
}

/// Tries the allowed variants, best first, until `can_run` accepts one, and marks it as chosen. A strict preference
/// tries only the first one.
std::optional<size_t> select_variant(std::vector<Candidate>& candidates, const std::vector<size_t>& order, bool strict,
                                     const std::function<bool(size_t)>& can_run) {
  for (const size_t i : order) {
    candidates[i].check.chosen = can_run(i);
    if (candidates[i].check.chosen) return i;
    if (strict) break;
  }
  return std::nullopt;
}

std::vector<VariantCheck> checks_of(const std::vector<Candidate>& candidates) {
  std::vector<VariantCheck> checks;
  for (const Candidate& candidate : candidates) checks.push_back(candidate.check);
  return checks;
}

/// Runs an engine once on zeros of the sizes that its compiler optimized for.
void warm_up(Engine& engine, const ArtifactSpec& spec, const EngineOptions& options) {
  std::vector<at::Tensor> inputs;
  for (const TensorSpec& input : spec.inputs) {
    inputs.push_back(at::zeros(input.opt, at::TensorOptions(input.dtype).device(options.device)));
  }
  const at::NoGradGuard no_grad;
  engine.run(inputs);
  // A failure on a GPU is reported when someone waits for it.
  wait_for(options.device);
}

/// Cache of the engines in use, so that two loads of one file share them.
class EngineCache {
 public:
  static EngineCache& instance() {
    static EngineCache* cache = new EngineCache();
    return *cache;
  }

  std::shared_ptr<Engine> get_or_load(Backend& backend, const ArtifactSpec& spec, const BlobMap& blobs,
                                      const EngineOptions& options) {
    const auto entry = entry_of(key_of(spec, options) + "|" + backend.settings());
    // Held while the engine loads: a second caller for the same artifact waits, others continue.
    const std::lock_guard lock(entry->mutex);
    if (auto engine = entry->engine.lock()) return engine;
    auto engine = backend.load(spec, blobs, options);
    entry->engine = engine;
    return engine;
  }

 private:
  struct Entry {
    std::mutex mutex;
    std::weak_ptr<Engine> engine;
  };

  static std::string key_of(const ArtifactSpec& spec, const EngineOptions& options) {
    const bool is_emulated = options.emulate_precision && spec.precision != "fp32";  // which every machine has
    std::string key = spec.backend + "|" + spec.precision + "|" + options.device.str() + "|" +
                      std::to_string(options.threads) + "x" + std::to_string(options.concurrency) + "|" +
                      (options.pin_threads ? "pinned" : "free") + "|" + (is_emulated ? "emulate" : "native");
    for (const BlobSpec& blob : spec.blobs) key += "|" + blob.sha256;
    // An engine keeps the dtypes and ranges of the file that created it. Another file may declare others for the same
    // bytes.
    for (const auto* tensors : {&spec.inputs, &spec.outputs}) {
      for (const TensorSpec& tensor : *tensors) key += "|" + tensor.name + " " + to_string(tensor);
      key += "|";
    }
    for (const auto& [name, value] : spec.requirements) key += "|" + name + "=" + value;
    return key;
  }

  /// Returns true if no thread uses the entry and its engine is gone. The caller holds mutex_.
  static bool is_unused(const std::shared_ptr<Entry>& entry) {
    if (entry.use_count() != 1) return false;
    // The count alone does not order the last user's write of the engine before this read.
    const std::unique_lock lock(entry->mutex, std::try_to_lock);
    return lock.owns_lock() && entry->engine.expired();
  }

  std::shared_ptr<Entry> entry_of(const std::string& key) {
    const std::lock_guard lock(mutex_);
    for (auto it = entries_.begin(); it != entries_.end();) {
      it = is_unused(it->second) ? entries_.erase(it) : std::next(it);
    }
    auto& entry = entries_[key];
    if (!entry) entry = std::make_shared<Entry>();
    return entry;
  }

  std::mutex mutex_;
  std::map<std::string, std::shared_ptr<Entry>> entries_;
};

std::string reasons_of(const std::vector<VariantCheck>& variants) {
  std::string reasons;
  for (const VariantCheck& variant : variants) {
    if (!variant.refusal.empty()) {
      reasons += "\n  " + variant.backend + " (" + variant.precision + "): " + variant.refusal;
    }
  }
  return reasons + "\n";
}

Error none_can_run(const std::string& name, const std::vector<VariantCheck>& variants) {
  return Error(ErrorKind::kBackend, "variants", "engine '" + name + "'", "a variant that can run on this machine",
               "none of " + std::to_string(variants.size()) + ":" + reasons_of(variants),
               "Install what a variant lacks, ask for another one (HYBRID_RT_BACKEND or backend=), or convert with an "
               "engine that runs here (fallback=True keeps a "
               "TorchScript variant); `hybrid-rt doctor` shows what this machine can run.");
}

Error would_fall_back(const std::string& name, const VariantCheck& first, const std::vector<VariantCheck>& variants) {
  return Error(ErrorKind::kBackend, "variants", "engine '" + name + "', strict",
               "its first variant, " + first.backend + " (" + first.precision + "), to run",
               "refusals:" + reasons_of(variants),
               "Install what the first variant requires, or load without strict to fall back to the next one.");
}

}  // namespace

std::vector<size_t> Preference::order(const std::vector<ArtifactSpec>& specs) const {
  std::vector<size_t> found;
  if (backends.empty()) {
    for (size_t i = 0; i < specs.size(); ++i) found.push_back(i);
    return found;
  }
  for (const std::string& wanted : backends) {
    for (size_t i = 0; i < specs.size(); ++i) {
      if (is_meant(wanted, specs[i]) && std::find(found.begin(), found.end(), i) == found.end()) found.push_back(i);
    }
  }
  return found;
}

bool Preference::allows(const ArtifactSpec& spec) const {
  return allowed.empty() ||
         std::any_of(allowed.begin(), allowed.end(), [&](const std::string& name) { return is_meant(name, spec); });
}

Preference preference_from(const std::string& backends, bool strict, const std::vector<std::string>& allow) {
  Preference preference{.backends = names_in(backends.empty() ? environment("HYBRID_RT_BACKEND") : backends),
                        .strict = strict,
                        .allowed = allow};
  if (!allow.empty()) return preference;
  const std::string policy = environment("HYBRID_RT_ALLOW");
  preference.allowed = names_in(policy);
  // A policy without any name is a mistake, and must not allow everything.
  if (!policy.empty() && preference.allowed.empty()) preference.allowed = {policy};
  return preference;
}

std::vector<VariantCheck> check_variants(const std::vector<ArtifactSpec>& specs, const Preference& preference,
                                         const EngineOptions& options, const Machine& machine) {
  const EngineCall call;
  std::vector<Candidate> candidates = check_all(specs, preference, options, machine);
  select_variant(candidates, preference.order(specs), preference.strict,
                 [&](size_t i) { return candidates[i].check.refusal.empty(); });
  return checks_of(candidates);
}

ChosenEngine choose_engine(const std::string& name, const std::vector<ArtifactSpec>& specs, const BlobTable& table,
                           const Preference& preference, const EngineOptions& options, const Machine& machine) {
  const EngineCall call;
  std::vector<Candidate> candidates = check_all(specs, preference, options, machine);
  std::shared_ptr<Engine> engine;
  const auto load = [&](size_t i) {
    auto& [check, backend] = candidates[i];
    const std::string subject = "engine '" + name + "': " + describe(specs[i]);
    if (!check.refusal.empty()) {
      log(LogLevel::kInfo, subject + " can't run: " + check.refusal);
      return false;
    }
    const BlobMap blobs(specs[i], table.blobs_of(specs[i]));  // outside of the try block: altered bytes abort the load
    try {
      engine = EngineCache::instance().get_or_load(*backend, specs[i], blobs, options);
      if (options.warm_up) warm_up(*engine, specs[i], options);
      return true;
    } catch (const std::exception& error) {  // a faulty plug-in may throw anything
      check.refusal = error.what();
      engine = nullptr;
      log(LogLevel::kWarning, subject + " failed to load: " + error.what());
      return false;
    }
  };
  const std::vector<size_t> order = preference.order(specs);
  const std::optional<size_t> chosen = select_variant(candidates, order, preference.strict, load);
  const std::vector<VariantCheck> checks = checks_of(candidates);
  if (chosen) {
    log(LogLevel::kInfo, "engine '" + name + "' runs on " + engine->description());
    return {.engine = std::move(engine), .index = *chosen, .variants = checks};
  }
  if (preference.strict && !order.empty()) throw would_fall_back(name, checks[order.front()], checks);
  throw none_can_run(name, checks);
}

}  // namespace hybrid_rt
