#include "engine/variants.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/zeros.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include <algorithm>
#include <cstdlib>
#include <map>
#include <mutex>
#include <sstream>

#include "hybrid_rt/log.h"

namespace hybrid_rt {
namespace {

std::string describe(const ArtifactSpec& spec) { return spec.backend + " (" + spec.precision + ")"; }

bool is_meant(const std::string& wanted, const ArtifactSpec& spec) {
  return wanted == spec.backend || wanted == spec.backend + ":" + spec.precision;
}

std::string refusal_of(const ArtifactSpec& spec, const EngineOptions& options, const Machine& machine) {
  const c10::Device device = options.device;
  const auto cuda_index = static_cast<size_t>(device.is_cuda() && device.has_index() ? device.index() : 0);
  try {
    // What the machine lacks comes before what can be installed.
    if (const auto reason = unmet(spec, "", machine, cuda_index)) return *reason;
    Backend& runtime = backend(spec.backend);
    const Availability availability = runtime.availability();
    if (!availability.available) return availability.reason;
    if (const auto reason = unmet(spec, availability.version, machine, cuda_index)) return *reason;
    if (const auto reason = runtime.refusal(spec, options)) return *reason;
    if (device.is_cuda() && cuda_index >= machine.cuda_devices.size()) {
      return machine.cuda_devices.empty() ? "there is no CUDA device: " + machine.no_cuda_reason
                                          : "there is no CUDA device " + std::to_string(cuda_index);
    }
    return "";
  } catch (const Error& error) {
    return error.what();
  }
}

/// Runs an engine once on zeros of the sizes that its compiler was told to expect.
void warm_up(Engine& engine, const ArtifactSpec& spec, const EngineOptions& options) {
  std::vector<at::Tensor> inputs;
  for (const TensorSpec& input : spec.inputs) {
    inputs.push_back(at::zeros(input.opt, at::TensorOptions(input.dtype).device(options.device)));
  }
  const at::NoGradGuard no_grad;
  engine.run(inputs);
  // What fails on a GPU is told by whoever waits for it.
  if (options.device.is_cuda()) {
    c10::impl::VirtualGuardImpl(options.device.type()).synchronizeDevice(options.device.index());
  }
}

/// Engines that are in use, so that two loads of one file share them.
class EngineCache {
 public:
  static EngineCache& instance() {
    static EngineCache* cache = new EngineCache();
    return *cache;
  }

  std::shared_ptr<Engine> get_or_load(const ArtifactSpec& spec, const std::vector<at::Tensor>& blobs,
                                      const EngineOptions& options) {
    const auto entry = entry_of(key_of(spec, options) + "|" + backend(spec.backend).settings());
    // Held while the engine loads: a second caller of the same artifact waits for it, others go on.
    const std::lock_guard lock(entry->mutex);
    if (auto engine = entry->engine.lock()) return engine;
    auto engine = backend(spec.backend).load(spec, blobs, options);
    entry->engine = engine;
    return engine;
  }

 private:
  struct Entry {
    std::mutex mutex;
    std::weak_ptr<Engine> engine;
  };

  static std::string key_of(const ArtifactSpec& spec, const EngineOptions& options) {
    std::string key = spec.backend + "|" + spec.precision + "|" + options.device.str() + "|" +
                      std::to_string(options.threads) + "x" + std::to_string(options.concurrency) + "|" +
                      (options.emulate_precision ? "emulate" : "native");
    for (const BlobSpec& blob : spec.blobs) key += "|" + blob.sha256;
    return key;
  }

  std::shared_ptr<Entry> entry_of(const std::string& key) {
    const std::lock_guard lock(mutex_);
    for (auto it = entries_.begin(); it != entries_.end();) {
      it = it->second.use_count() == 1 && it->second->engine.expired() ? entries_.erase(it) : std::next(it);
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
               "Mend what the first one lacks, or load without strict to run the next one.");
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

Preference preference_from(const std::string& backends, bool strict) {
  const char* from_environment = std::getenv("HYBRID_RT_BACKEND");
  std::istringstream names(!backends.empty() ? backends : from_environment ? from_environment : "");
  Preference preference{{}, strict};
  for (std::string name; std::getline(names, name, ',');) {
    const size_t first = name.find_first_not_of(' ');
    if (first == std::string::npos) continue;
    preference.backends.push_back(name.substr(first, name.find_last_not_of(' ') - first + 1));
  }
  return preference;
}

std::vector<VariantCheck> check_variants(const std::vector<ArtifactSpec>& specs, const Preference& preference,
                                         const EngineOptions& options, const Machine& machine) {
  std::string wanted;
  for (const std::string& name : preference.backends) wanted += (wanted.empty() ? "'" : ", '") + name + "'";
  const std::vector<size_t> order = preference.order(specs);
  std::vector<VariantCheck> checks;
  for (size_t i = 0; i < specs.size(); ++i) {
    const bool is_allowed = std::find(order.begin(), order.end(), i) != order.end();
    checks.push_back({specs[i].backend, specs[i].precision, false,
                      is_allowed ? refusal_of(specs[i], options, machine) : "only " + wanted + " was asked for"});
  }
  for (const size_t i : order) {
    if (!checks[i].refusal.empty() && !preference.strict) continue;
    checks[i].chosen = checks[i].refusal.empty();
    break;
  }
  return checks;
}

Choice choose_engine(const std::string& name, const std::vector<ArtifactSpec>& specs, const BlobTable& table,
                     const Preference& preference, const EngineOptions& options) {
  Choice choice;
  choice.variants = check_variants(specs, preference, options);
  for (VariantCheck& variant : choice.variants) variant.chosen = false;
  const std::vector<size_t> order = preference.order(specs);
  for (const size_t i : order) {
    VariantCheck& variant = choice.variants[i];
    if (variant.refusal.empty()) {
      const std::vector<at::Tensor> bytes = table.blobs_of(specs[i]);
      try {
        choice.engine = EngineCache::instance().get_or_load(specs[i], bytes, options);
        if (options.warm_up) warm_up(*choice.engine, specs[i], options);
      } catch (const std::exception& error) {  // a plug-in's mistake may throw anything
        variant.refusal = error.what();
        choice.engine = nullptr;
        log(LogLevel::kWarning, "engine '" + name + "': " + describe(specs[i]) + " failed to load: " + error.what());
      }
    } else {
      log(LogLevel::kInfo, "engine '" + name + "': " + describe(specs[i]) + " can't run: " + variant.refusal);
    }
    if (choice.engine) {
      variant.chosen = true;
      choice.index = i;
      log(LogLevel::kInfo, "engine '" + name + "' runs on " + choice.engine->description());
      return choice;
    }
    if (preference.strict) throw would_fall_back(name, variant, choice.variants);
  }
  throw none_can_run(name, choice.variants);
}

}  // namespace hybrid_rt
