#pragma once

#include <string>
#include <vector>

#include "bundle/archive.h"
#include "hybrid_rt/load_options.h"

namespace hybrid_rt {

/// Returns those of the trusted keys that signed the bundle, after comparing every record with its digest. Throws
/// Error(kBundle) if there is none.
std::vector<std::string> require_signature(const Archive& file, const std::vector<std::string>& trusted_keys);

/// Enforces the trust policy of a load, before any byte of the bundle reaches torch or a vendor. Keys in the options or
/// in HYBRID_RT_TRUSTED_KEYS require a signature.
void check_trust(const Archive& file, const LoadOptions& options);

}  // namespace hybrid_rt
