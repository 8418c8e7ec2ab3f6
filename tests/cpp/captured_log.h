#pragma once

#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "hybrid_rt/log.h"
#include "lasting.h"

/// Captures messages during its lifetime instead of writing them.
class CapturedLog : Lasting {
 public:
  CapturedLog() {
    hybrid_rt::set_logger([this](hybrid_rt::LogLevel level, const std::string& message) {
      const std::lock_guard lock(mutex_);
      messages_.emplace_back(level, message);
    });
  }
  ~CapturedLog() { hybrid_rt::set_logger({}); }

  /// Returns the messages of one level, in order.
  std::vector<std::string> of(hybrid_rt::LogLevel level) const {
    const std::lock_guard lock(mutex_);
    std::vector<std::string> found;
    for (const auto& [each, message] : messages_) {
      if (each == level) found.push_back(message);
    }
    return found;
  }

 private:
  mutable std::mutex mutex_;
  std::vector<std::pair<hybrid_rt::LogLevel, std::string>> messages_;
};
