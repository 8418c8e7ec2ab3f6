#pragma once

#include <doctest/doctest.h>

#include <optional>

#include "hybrid_rt/error.h"

/// Returns the Error that a call throws. The test fails if it throws none; doctest reports any other exception.
template <typename Call>
hybrid_rt::Error failure_of(Call&& call) {
  std::optional<hybrid_rt::Error> caught;
  try {
    call();
  } catch (const hybrid_rt::Error& error) {
    caught = error;
  }
  REQUIRE(caught.has_value());
  return *caught;
}

inline bool contains(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }
