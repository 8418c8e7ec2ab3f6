#include "variants.h"

#include <cstdlib>
#include <map>
#include <mutex>

#include "digest.h"
#include "hybrid_rt/log.h"

namespace hybrid_rt {
namespace {

std::string describe(const ArtifactSpec& spec) { return spec.backend + " (" + spec.precision + ")"; }

std::string refusal_of(const ArtifactSpec& spec, const Preference& preference, const EngineOptions& options) {
  if (!preference.backend.empty() && spec.backend != preference.backend) {
    return "only '" + preference.backend + "' was asked for";
  }
  try {
    Backend& runtime = backend(spec.backend);
    const Availability availability = runtime.availability();
    if (!availability.available) return availability.reason;
    return runtime.refusal(spec, options).value_or("");
  } catch (const Error& error) {
    return error.what();
  }
}

std::vector<at::Tensor> blobs_of(const std::string& segment, const ArtifactSpec& spec,
                                 const std::vector<at::Tensor>& blobs) {
  std::vector<at::Tensor> found;
  for (const BlobSpec& blob : spec.blobs) {
    const at::Tensor& bytes = blobs.at(static_cast<size_t>(blob.index));
    const std::string got = sha256(bytes.const_data_ptr<uint8_t>(), static_cast<size_t>(bytes.numel()));
    if (got != blob.sha256) {
      throw Error(ErrorKind::kBundle, spec.backend, "segment '" + segment + "', blob '" + blob.name + "'",
                  "the SHA-256 " + blob.sha256, got, "The file was altered or damaged: copy or convert it again.");
    }
    found.push_back(bytes);
  }
  return found;
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
    const auto entry = entry_of(key_of(spec, options));
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
                      std::to_string(options.threads) + "|" + (options.emulate_precision ? "emulate" : "native");
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

Error none_can_run(const std::string& segment, const std::vector<VariantCheck>& variants) {
  std::string reasons;
  for (const VariantCheck& variant : variants) {
    reasons += "\n  " + variant.backend + " (" + variant.precision + "): " + variant.refusal;
  }
  return Error(ErrorKind::kBackend, "variants", "segment '" + segment + "'", "a variant that can run on this machine",
               "none of " + std::to_string(variants.size()) + ":" + reasons + "\n",
               "Install what a variant lacks, ask for another one (HYBRID_RT_BACKEND or backend=), or convert with an "
               "engine that runs here (fallback=True keeps a "
               "TorchScript variant); `hybrid-rt doctor` shows what this machine can run.");
}

}  // namespace

Preference preference_from(const std::string& backend) {
  if (!backend.empty()) return {backend};
  const char* from_environment = std::getenv("HYBRID_RT_BACKEND");
  return {from_environment ? from_environment : ""};
}

std::vector<VariantCheck> check_variants(const std::vector<ArtifactSpec>& specs, const Preference& preference,
                                         const EngineOptions& options) {
  std::vector<VariantCheck> checks;
  bool chosen = false;
  for (const ArtifactSpec& spec : specs) {
    VariantCheck check{spec.backend, spec.precision, false, refusal_of(spec, preference, options)};
    check.chosen = !chosen && check.refusal.empty();
    chosen = chosen || check.chosen;
    checks.push_back(std::move(check));
  }
  return checks;
}

Choice choose_engine(const std::string& segment, const std::vector<ArtifactSpec>& specs,
                     const std::vector<at::Tensor>& blobs, const Preference& preference, const EngineOptions& options) {
  Choice choice;
  choice.variants = check_variants(specs, preference, options);
  for (size_t i = 0; i < specs.size(); ++i) {
    VariantCheck& variant = choice.variants[i];
    variant.chosen = false;
    if (!variant.refusal.empty()) {
      log(LogLevel::kInfo, "segment '" + segment + "': " + describe(specs[i]) + " can't run: " + variant.refusal);
      continue;
    }
    const std::vector<at::Tensor> bytes = blobs_of(segment, specs[i], blobs);
    try {
      choice.engine = EngineCache::instance().get_or_load(specs[i], bytes, options);
    } catch (const std::exception& error) {  // a plug-in's mistake may throw anything
      variant.refusal = error.what();
      log(LogLevel::kWarning, "segment '" + segment + "': " + describe(specs[i]) + " failed to load: " + error.what());
      continue;
    }
    variant.chosen = true;
    choice.index = i;
    log(LogLevel::kInfo, "segment '" + segment + "' runs on " + choice.engine->description());
    return choice;
  }
  throw none_can_run(segment, choice.variants);
}

}  // namespace hybrid_rt
