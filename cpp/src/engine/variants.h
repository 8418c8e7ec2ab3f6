#pragma once

#include <memory>
#include <string>
#include <vector>

#include "bundle/blob_table.h"
#include "hybrid_rt/engine.h"
#include "hybrid_rt/engine_choice.h"
#include "hybrid_rt/machine.h"

namespace hybrid_rt {

/// What decides which variant runs, beside what the machine can do.
struct Preference {
  /// Only these backends' variants, best first: "openvino", or of one precision: "openvino:bf16". Empty: any, in the
  /// file's order.
  std::vector<std::string> backends;
  bool strict = false;  ///< the first of them must run
  /// The policy: only these may run, in the same words. Empty: any.
  std::vector<std::string> allowed{};

  /// Of `specs`, the indices of those that it asks for, best first.
  std::vector<size_t> order(const std::vector<ArtifactSpec>& specs) const;
  /// Whether the policy lets a variant run.
  bool allows(const ArtifactSpec& spec) const;
};

/// Of `backends` (names, separated by commas) if it is not empty, else of HYBRID_RT_BACKEND, else no preference. The
/// policy is `allow` if it is not empty, else HYBRID_RT_ALLOW (names, separated by commas), else none.
Preference preference_from(const std::string& backends, bool strict = false,
                           const std::vector<std::string>& allow = {});

/// One entry per variant, in the file's order; `chosen` is set for the one that comes first and can run. Loads no
/// artifact.
std::vector<VariantCheck> check_variants(const std::vector<ArtifactSpec>& specs, const Preference& preference,
                                         const EngineOptions& options, const Machine& machine);

/// The engine of the variant that runs, and what was found about all of them.
struct ChosenEngine {
  std::shared_ptr<Engine> engine;
  size_t index = 0;  ///< of the variant
  std::vector<VariantCheck> variants;
};

/// Checks the variants, then loads the first that can run and whose load and warm-up succeed; one that passes its check
/// but fails then is warned of and falls to the next. Throws Error(kBackend) that lists every variant with its reason
/// if none is left or a strict preference would fall back, Error(kBundle) if the chosen artifact's bytes do not match
/// their digest: an altered file is never papered over by the next variant.
ChosenEngine choose_engine(const std::string& name, const std::vector<ArtifactSpec>& specs, const BlobTable& table,
                           const Preference& preference, const EngineOptions& options, const Machine& machine);

}  // namespace hybrid_rt
