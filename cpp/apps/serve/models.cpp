#include "models.h"

#include <filesystem>
#include <optional>
#include <utility>

namespace hybrid_rt::serve {
namespace {

namespace fs = std::filesystem;

Error wrong(const std::string& subject, const std::string& expected, const std::string& got,
            const std::string& remedy) {
  return Error(ErrorKind::kOption, "serve", subject, expected, got, remedy);
}

}  // namespace

Models::Models(std::vector<std::string> sources, DetectorOptions options)
    : sources_(std::move(sources)), options_(std::move(options)) {
  bundles();
}

std::map<std::string, std::string> Models::bundles() const {
  std::map<std::string, std::string> found;
  const auto add = [&found](const fs::path& path) {
    const auto [place, is_new] = found.emplace(path.stem().string(), path.string());
    if (!is_new) {
      throw wrong("model '" + place->first + "'", "bundles of different names", place->second + " and " + path.string(),
                  "Rename one.");
    }
  };
  for (const std::string& source : sources_) {
    std::error_code failed;
    if (!fs::is_directory(source, failed)) {
      add(source);
      continue;
    }
    for (const auto& entry : fs::directory_iterator(source, failed)) {
      if (entry.path().extension() == ".pt" && entry.is_regular_file(failed)) add(entry.path());
    }
    if (failed) throw wrong(source, "a directory that can be read", failed.message(), "Check its permissions.");
  }
  if (found.empty()) throw wrong("models", "at least one bundle (.pt)", "none in these directories", "Put one there.");
  return found;
}

void Models::load() {
  for (const auto& [name, path] : bundles()) {
    auto detector = std::make_shared<Detector>(path, options_);
    const std::lock_guard lock(mutex_);
    detectors_[name] = std::move(detector);
  }
}

Models::Reloaded Models::reload() {
  const std::lock_guard one_at_a_time(reloading_);
  Reloaded result;
  std::map<std::string, std::string> wanted;
  try {
    wanted = bundles();
  } catch (const Error& error) {
    result.failures.emplace_back(error.what());
    return result;
  }
  for (const auto& [name, path] : wanted) {
    try {
      const auto known = all();
      const auto place = known.find(name);
      if (place != known.end() && place->second->path() == path) {
        place->second->reload();
      } else {
        auto detector = std::make_shared<Detector>(path, options_);
        const std::lock_guard lock(mutex_);
        detectors_[name] = std::move(detector);
      }
      result.names.push_back(name);
    } catch (const std::exception& error) {
      result.failures.emplace_back(error.what());
    }
  }
  std::vector<std::shared_ptr<Detector>> gone;  // destroyed without the lock, as that waits for their requests
  const std::lock_guard lock(mutex_);
  for (auto it = detectors_.begin(); it != detectors_.end();) {
    if (wanted.contains(it->first)) {
      ++it;
      continue;
    }
    gone.push_back(std::move(it->second));
    it = detectors_.erase(it);
  }
  return result;
}

std::shared_ptr<Detector> Models::find(const std::string& name) const {
  const std::lock_guard lock(mutex_);
  if (name.empty()) return detectors_.size() == 1 ? detectors_.begin()->second : nullptr;
  const auto found = detectors_.find(name);
  return found == detectors_.end() ? nullptr : found->second;
}

std::map<std::string, std::shared_ptr<Detector>> Models::all() const {
  const std::lock_guard lock(mutex_);
  return detectors_;
}

void Models::stop() {
  for (const auto& [name, detector] : all()) detector->stop();
}

}  // namespace hybrid_rt::serve
