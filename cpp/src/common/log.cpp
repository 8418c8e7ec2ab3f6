#include "hybrid_rt/log.h"

#include <cstdlib>
#include <iostream>
#include <memory>
#include <mutex>
#include <string_view>

namespace hybrid_rt {
namespace {

LogLevel threshold_from_environment() {
  const char* value = std::getenv("HYBRID_RT_LOG");
  const std::string_view name = value ? value : "warning";
  if (name == "debug") return LogLevel::kDebug;
  if (name == "info") return LogLevel::kInfo;
  if (name == "error") return LogLevel::kError;
  return LogLevel::kWarning;
}

const char* word_for(LogLevel level) {
  switch (level) {
    case LogLevel::kDebug:
      return "debug";
    case LogLevel::kInfo:
      return "info";
    case LogLevel::kWarning:
      return "warning";
    case LogLevel::kError:
      return "error";
  }
  return "?";
}

void write_to_stderr(LogLevel level, const std::string& message) {
  if (level < threshold_from_environment()) return;
  std::cerr << "hybrid_rt " + std::string(word_for(level)) + ": " + message + "\n";
}

std::mutex mutex;
std::shared_ptr<const Logger> current;

}  // namespace

void set_logger(Logger logger) {
  auto next = logger ? std::make_shared<const Logger>(std::move(logger)) : nullptr;
  const std::lock_guard lock(mutex);
  current = std::move(next);
}

void log(LogLevel level, const std::string& message) {
  std::shared_ptr<const Logger> logger;
  {
    const std::lock_guard lock(mutex);
    logger = current;
  }
  if (logger) {
    (*logger)(level, message);
  } else {
    write_to_stderr(level, message);
  }
}

}  // namespace hybrid_rt
