#include "detections.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <iomanip>
#include <map>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string_view>

namespace hybrid_rt::detect_app {
namespace {

// Keys in the order of insertion; float, so that 0.91f is printed as 0.91 and still read back as the same float.
using Json =
    nlohmann::basic_json<nlohmann::ordered_map, std::vector, std::string, bool, std::int64_t, std::uint64_t, float>;

double percentile(std::vector<double> values, double fraction) {
  // Linear between the neighbours, as numpy.percentile.
  std::sort(values.begin(), values.end());
  const double position = fraction * static_cast<double>(values.size() - 1);
  const auto below = static_cast<std::size_t>(position);
  const std::size_t above = std::min(below + 1, values.size() - 1);
  return values[below] + (values[above] - values[below]) * (position - static_cast<double>(below));
}

float to_microseconds(double milliseconds) { return static_cast<float>(std::round(milliseconds * 1000) / 1000); }

}  // namespace

std::string to_json(const Result& result) {
  Json detections = Json::array();
  for (const Detection& detection : result.detections) {
    Json item = Json::object();
    item["box"] = detection.box;
    item["label"] = detection.label;
    item["score"] = detection.score;
    detections.push_back(std::move(item));
  }
  Json engines = Json::object();
  for (const EngineChoice& engine : result.engines) {
    for (const std::string& segment : engine.segments) engines[segment] = engine.backend;
  }
  Json timing = Json::object();
  timing["load"] = to_microseconds(result.timing.load);
  timing["decode"] = to_microseconds(result.timing.decode);
  timing["first"] = to_microseconds(result.timing.first);
  timing["median"] = to_microseconds(percentile(result.timing.runs, 0.5));
  timing["p95"] = to_microseconds(percentile(result.timing.runs, 0.95));
  timing["repeat"] = static_cast<std::uint64_t>(result.timing.runs.size());

  Json document = Json::object();
  document["detections"] = std::move(detections);
  document["engines"] = std::move(engines);
  document["timing_ms"] = std::move(timing);
  return document.dump(-1, ' ', false, Json::error_handler_t::replace);
}

std::string to_table(const Result& result, const std::vector<std::string>& label_names) {
  std::size_t label_width = 5;
  for (const Detection& detection : result.detections) {
    label_width = std::max(label_width, label_text(detection.label, label_names).size());
  }
  std::ostringstream text;
  text << std::fixed << std::left << std::setw(static_cast<int>(label_width)) << "label" << std::right
       << "   score        x1        y1        x2        y2\n";
  for (const Detection& detection : result.detections) {
    text << std::left << std::setw(static_cast<int>(label_width)) << label_text(detection.label, label_names)
         << std::right << std::setprecision(4) << std::setw(8) << detection.score << std::setprecision(1);
    for (const float coordinate : detection.box) text << std::setw(10) << coordinate;
    text << "\n";
  }
  text << "detections: " << result.detections.size() << "\n" << "engines:";
  for (const EngineChoice& engine : result.engines) {
    for (const std::string& segment : engine.segments) text << " " << segment << "=" << engine.backend;
  }
  if (result.engines.empty()) text << " none";
  const Timing& timing = result.timing;
  text << "\n"
       << "time in ms: load " << timing.load << ", decode " << timing.decode << ", first " << timing.first
       << ", median " << percentile(timing.runs, 0.5) << ", p95 " << percentile(timing.runs, 0.95) << " ("
       << timing.runs.size() << (timing.runs.size() == 1 ? " run)" : " runs)") << "\n";
  return text.str();
}

std::string label_text(std::int64_t label, const std::vector<std::string>& label_names) {
  const bool has_name = label >= 0 && label < std::ssize(label_names);
  return has_name ? label_names[static_cast<std::size_t>(label)] : std::to_string(label);
}

}  // namespace hybrid_rt::detect_app
