#pragma once

#include <hybrid_rt/verify.h>

#include <string>

namespace hybrid_rt::detect_app {

/// Describes a verification for users: one summary line, then one line per engine, image and failure.
std::string to_text(const Verification& verification, const std::string& model);

}  // namespace hybrid_rt::detect_app
