#include "hybrid_rt/thresholds.h"

#include <nlohmann/json.hpp>

#include "common/damaged.h"
#include "common/json_text.h"

namespace hybrid_rt {

Thresholds Thresholds::from_json(const std::string& json) {
  try {
    const auto values = parse_json(json);
    Thresholds thresholds;
    for (const ThresholdField& field : kThresholdFields) thresholds.*field.value = values.at(field.name).get<double>();
    return thresholds;
  } catch (const nlohmann::json::exception& error) {
    throw damaged("", "thresholds", "a number for each", error.what());
  }
}

}  // namespace hybrid_rt
