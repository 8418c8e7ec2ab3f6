#pragma once

#include <functional>
#include <string>

namespace hybrid_rt {
/// Severity of a message, lowest first.
enum class LogLevel { kDebug, kInfo, kWarning, kError };
/// Receiver of messages. May be called from several threads.
using Logger = std::function<void(LogLevel, const std::string&)>;

/// Sets the receiver of messages. The default writes messages at the level of HYBRID_RT_LOG (debug, info, warning,
/// error; default: warning) and above to stderr. `logger` may be called from several threads. An empty one restores the
/// default.
void set_logger(Logger logger);

/// Passes a message to the logger. May be called from several threads.
void log(LogLevel level, const std::string& message);

}  // namespace hybrid_rt
