#include "hybrid_rt/log.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <iostream>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include "captured_log.h"
#include "temporary.h"

namespace {

using hybrid_rt::log;
using hybrid_rt::LogLevel;

/// Returns the output of the default logger for one message per level.
std::string written_of_all_levels() {
  std::ostringstream stream;
  std::streambuf* before = std::cerr.rdbuf(stream.rdbuf());
  log(LogLevel::kDebug, "one");
  log(LogLevel::kInfo, "two");
  log(LogLevel::kWarning, "three");
  log(LogLevel::kError, "four");
  std::cerr.rdbuf(before);
  return stream.str();
}

}  // namespace

TEST_CASE("warnings and errors are written to stderr by default") {
  const TemporaryVariable unset("HYBRID_RT_LOG", nullptr);
  CHECK(written_of_all_levels() == "hybrid_rt warning: three\nhybrid_rt error: four\n");
}

TEST_CASE("HYBRID_RT_LOG sets the level from which messages are written") {
  const auto written = [](const char* level) {
    const TemporaryVariable variable("HYBRID_RT_LOG", level);
    return written_of_all_levels();
  };
  const std::string errors = "hybrid_rt error: four\n";
  const std::string warnings = "hybrid_rt warning: three\n" + errors;
  const std::string infos = "hybrid_rt info: two\n" + warnings;
  CHECK(written("debug") == "hybrid_rt debug: one\n" + infos);
  CHECK(written("info") == infos);
  CHECK(written("warning") == warnings);
  CHECK(written("error") == errors);
  CHECK(written("no such level") == warnings);
}

TEST_CASE("a custom logger gets every message, and nothing is written") {
  const TemporaryVariable variable("HYBRID_RT_LOG", "error");
  CapturedLog captured;
  CHECK(written_of_all_levels().empty());
  CHECK(captured.of(LogLevel::kDebug) == std::vector<std::string>{"one"});
  CHECK(captured.of(LogLevel::kError) == std::vector<std::string>{"four"});
}

TEST_CASE("an empty logger restores the default") {
  const TemporaryVariable variable("HYBRID_RT_LOG", "error");
  {
    CapturedLog captured;
  }
  CHECK(written_of_all_levels() == "hybrid_rt error: four\n");
}

TEST_CASE("a logger may log and may replace itself") {
  std::vector<std::string> seen;
  hybrid_rt::set_logger([&seen](LogLevel, const std::string& message) {
    seen.push_back(message);
    hybrid_rt::set_logger([&seen](LogLevel, const std::string& inner) { seen.push_back("inner " + inner); });
    log(LogLevel::kInfo, "again");
  });
  log(LogLevel::kInfo, "first");
  hybrid_rt::set_logger({});
  CHECK(seen == std::vector<std::string>{"first", "inner again"});
}

TEST_CASE("messages from many threads arrive intact") {
  CapturedLog captured;
  std::vector<std::thread> threads;
  for (int i = 0; i < 8; ++i) {
    threads.emplace_back([i] {
      for (int k = 0; k < 100; ++k) log(LogLevel::kInfo, "message of " + std::to_string(i));
    });
  }
  for (std::thread& thread : threads) thread.join();
  const auto messages = captured.of(LogLevel::kInfo);
  REQUIRE(messages.size() == 800);
  for (int i = 0; i < 8; ++i) {
    CHECK(std::count(messages.begin(), messages.end(), "message of " + std::to_string(i)) == 100);
  }
}
