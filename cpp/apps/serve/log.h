#pragma once

#include <nlohmann/json.hpp>
#include <string>

namespace hybrid_rt::serve {

/// Writes a JSON object as one line to stderr: "time" (UTC), "level", "event", then the fields. Lines of different
/// threads do not mix.
void log_event(const std::string& level, const std::string& event,
               const nlohmann::ordered_json& fields = nlohmann::ordered_json::object());

}  // namespace hybrid_rt::serve
