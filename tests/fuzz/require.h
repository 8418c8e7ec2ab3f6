#pragma once

#include <cstdio>
#include <cstdlib>
#include <nlohmann/json.hpp>
#include <string>

/// Aborts the process, which libFuzzer treats as a crash, if a property of the result does not hold.
inline void require(bool holds, const char* property) {
  if (holds) return;
  std::fprintf(stderr, "does not hold: %s\n", property);
  std::abort();
}

/// Does the same as the server with the text of an error. This must not fail.
inline void require_message(const std::string& message, const char* prefix) {
  require(message.starts_with(prefix) && message.find(": expected ") != std::string::npos &&
              message.find(", got ") != std::string::npos,
          "an error has the form hybrid_rt[SCOPE]: SUBJECT: expected X, got Y");
  require(message.size() < 1000, "an error's text is short");
  try {
    (void)nlohmann::json(message).dump();
  } catch (const nlohmann::json::exception&) {
    require(false, "an error's text is UTF-8");
  }
}
