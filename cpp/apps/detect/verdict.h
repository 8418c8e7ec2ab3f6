#pragma once

#include <hybrid_rt/verify.h>

#include <string>

namespace hybrid_rt::detect_app {

/// What was compared, for people: a line for the whole, one an engine, one a picture, one a failure.
std::string to_text(const Verification& verification, const std::string& model);

}  // namespace hybrid_rt::detect_app
