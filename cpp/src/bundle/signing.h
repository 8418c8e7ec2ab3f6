#pragma once

#include <string>
#include <vector>

#include "bundle/archive.h"
#include "hybrid_rt/load_options.h"

namespace hybrid_rt {

/// Returns the keys that signed the bundle, of those that are trusted; every record is compared with its digest. Throws
/// Error(kBundle) where there is none.
std::vector<std::string> require_signature(const Archive& file, const std::vector<std::string>& trusted_keys);

/// Holds a bundle to the trust policy of a load, before any byte of it goes to torch or to a vendor. Keys that are
/// named, in the options or in HYBRID_RT_TRUSTED_KEYS, ask for a signature.
void check_trust(const Archive& file, const LoadOptions& options);

}  // namespace hybrid_rt
