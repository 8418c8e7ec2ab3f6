#pragma once

#include <doctest/doctest.h>

#include <cstdlib>
#include <string>

/// Returns the path of the demo detector's bundle, from HYBRID_RT_TEST_BUNDLE.
inline std::string bundle() {
  const char* path = std::getenv("HYBRID_RT_TEST_BUNDLE");
  REQUIRE_MESSAGE(path != nullptr, "HYBRID_RT_TEST_BUNDLE names no bundle; tools/dev/make_test_bundle.py makes one");
  return path;
}
