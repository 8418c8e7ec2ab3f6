#include "hybrid_rt/thresholds.h"

#include <nlohmann/json.hpp>

#include "common/json_text.h"
#include "hybrid_rt/error.h"

namespace hybrid_rt {

Thresholds Thresholds::from_json(const std::string& json) {
  try {
    const auto values = parse_json(json);
    Thresholds thresholds;
    for (const ThresholdField& field : kThresholdFields) thresholds.*field.value = values.at(field.name).get<double>();
    return thresholds;
  } catch (const nlohmann::json::exception& error) {
    throw Error(ErrorKind::kBundle, "bundle", "thresholds", "a number for each", error.what(),
                "The file was altered or damaged: copy or convert it again.");
  }
}

}  // namespace hybrid_rt
