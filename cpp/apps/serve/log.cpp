#include "log.h"

#include <array>
#include <chrono>
#include <cstdio>
#include <ctime>

namespace hybrid_rt::serve {
namespace {

std::string now() {
  const auto time = std::chrono::system_clock::now().time_since_epoch();
  const auto milliseconds = std::chrono::duration_cast<std::chrono::milliseconds>(time).count();
  const std::time_t seconds = milliseconds / 1000;
  std::tm utc{};
  gmtime_r(&seconds, &utc);
  std::array<char, 32> text{};
  std::strftime(text.data(), text.size(), "%Y-%m-%dT%H:%M:%S", &utc);
  std::array<char, 8> fraction{};
  std::snprintf(fraction.data(), fraction.size(), ".%03dZ", static_cast<int>(milliseconds % 1000));
  return std::string(text.data()) + fraction.data();
}

}  // namespace

void log_event(const std::string& level, const std::string& event, const nlohmann::ordered_json& fields) {
  nlohmann::ordered_json line = {{"time", now()}, {"level", level}, {"event", event}};
  line.update(fields);
  const std::string text = line.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace) + "\n";
  std::fwrite(text.data(), 1, text.size(), stderr);  // unbuffered: one write per call, locked by the C library
}

}  // namespace hybrid_rt::serve
