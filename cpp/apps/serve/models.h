#pragma once

#include <hybrid_rt/detector.h>

#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

namespace hybrid_rt::serve {

/// The served detectors by name: a bundle's file name without ".pt".
class Models {
 public:
  /// `sources` are bundles or directories of bundles. Loads nothing yet. Throws Error(kOption).
  Models(std::vector<std::string> sources, DetectorOptions options);

  struct Reloaded {
    std::vector<std::string> names;
    std::vector<std::string> failures;  ///< their previously loaded bundles stay in service
  };

  /// Loads every bundle. Throws Error that names the bundle that can't be loaded.
  void load();

  /// Scans the directories again, loads new bundles, reloads known ones, and drops those whose files are gone.
  Reloaded reload();

  /// Returns the detector of that name, or the only one if the name is empty; null if there is none.
  std::shared_ptr<Detector> find(const std::string& name) const;

  std::map<std::string, std::shared_ptr<Detector>> all() const;

  /// Stops the detectors. Returns when every accepted request is done.
  void stop();

 private:
  /// Returns paths by name. Throws Error(kOption) if two bundles have the same name, or if there is none.
  std::map<std::string, std::string> bundles() const;

  const std::vector<std::string> sources_;
  const DetectorOptions options_;
  std::mutex reloading_;
  mutable std::mutex mutex_;  // guards the members below
  std::map<std::string, std::shared_ptr<Detector>> detectors_;
};

}  // namespace hybrid_rt::serve
