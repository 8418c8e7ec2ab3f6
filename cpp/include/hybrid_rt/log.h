#pragma once

#include <functional>
#include <string>

namespace hybrid_rt {

enum class LogLevel { kDebug, kInfo, kWarning, kError };

using Logger = std::function<void(LogLevel, const std::string&)>;

/// Where messages go; the default writes those of HYBRID_RT_LOG (debug, info, warning, error; warning if unset) and
/// above to stderr. `logger` may be called from several threads. An empty one restores the default.
void set_logger(Logger logger);

void log(LogLevel level, const std::string& message);

}  // namespace hybrid_rt
