#pragma once

#include <memory>
#include <string>
#include <vector>

#include "hybrid_rt/backend.h"

namespace hybrid_rt {

/// What decides which variant runs, beside what the machine can do.
struct Preference {
  std::string backend;  ///< only this backend's variants; empty: any, in the file's order
};

/// `backend` if it is not empty, else HYBRID_RT_BACKEND, else no preference.
Preference preference_from(const std::string& backend);

/// One entry a variant, in order; `chosen` is set for the first that can run. Loads no artifact.
std::vector<VariantCheck> check_variants(const std::vector<ArtifactSpec>& specs, const Preference& preference,
                                         const EngineOptions& options);

/// A variant that runs, and what was found about all of them.
struct Choice {
  std::shared_ptr<Engine> engine;
  size_t index = 0;
  std::vector<VariantCheck> variants;
};

/// Checks the variants, then loads the first that can run and whose load succeeds; one that passes its check but
/// fails to load is warned of and falls to the next. Throws Error(kBackend) that lists every variant with its reason
/// if none is left, Error(kBundle) if the chosen artifact's bytes do not match their digest: an altered file is never
/// papered over by the next variant.
Choice choose_engine(const std::string& segment, const std::vector<ArtifactSpec>& specs,
                     const std::vector<at::Tensor>& blobs, const Preference& preference, const EngineOptions& options);

}  // namespace hybrid_rt
