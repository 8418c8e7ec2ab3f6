#pragma once

#include <hybrid_rt/detector.h>

#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

namespace hybrid_rt::serve {

/// The detectors that are served, by name: a bundle's is its file name without ".pt".
class Models {
 public:
  /// `sources`: bundles, or folders of bundles. Nothing is loaded yet. Throws Error(kOption).
  Models(std::vector<std::string> sources, DetectorOptions options);

  struct Reloaded {
    std::vector<std::string> names;
    std::vector<std::string> failures;  ///< of those, what was loaded before goes on
  };

  /// Loads every bundle. Throws Error that names the one which can't be.
  void load();

  /// Looks into the folders again, loads new bundles and those that are loaded anew, and lets go of those that are
  /// gone.
  Reloaded reload();

  /// The one of that name; with an empty name the only one. Null if there is none.
  std::shared_ptr<Detector> find(const std::string& name) const;

  std::map<std::string, std::shared_ptr<Detector>> all() const;

  /// Returns when all that was taken is done.
  void stop();

 private:
  /// (name, path). Throws Error(kOption) for two of one name, and for none at all.
  std::map<std::string, std::string> bundles() const;

  const std::vector<std::string> sources_;
  const DetectorOptions options_;
  std::mutex reloading_;
  mutable std::mutex mutex_;  // guards what follows
  std::map<std::string, std::shared_ptr<Detector>> detectors_;
};

}  // namespace hybrid_rt::serve
