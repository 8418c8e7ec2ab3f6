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

// Keeps the order of insertion. Numbers are floats, so that 0.91f is printed as 0.91 and read back as the same float.
using Json =
    nlohmann::basic_json<nlohmann::ordered_map, std::vector, std::string, bool, std::int64_t, std::uint64_t, float>;

std::size_t characters(const std::string& text) {
  return static_cast<std::size_t>(std::count_if(text.begin(), text.end(), [](char c) { return (c & 0xC0) != 0x80; }));
}

double percentile(std::vector<double> values, double fraction) {
  // Interpolates linearly between neighbours, as numpy.percentile does.
  std::sort(values.begin(), values.end());
  const double position = fraction * static_cast<double>(values.size() - 1);
  const auto below = static_cast<std::size_t>(position);
  const std::size_t above = std::min(below + 1, values.size() - 1);
  return values[below] + (values[above] - values[below]) * (position - static_cast<double>(below));
}

/// Pads `text` with spaces to `width` characters. setw() would count bytes, and a character has up to four in UTF-8.
std::string padded(const std::string& text, std::size_t width) {
  const std::size_t length = characters(text);
  return length < width ? text + std::string(width - length, ' ') : text;
}

float to_microseconds(double milliseconds) { return static_cast<float>(std::round(milliseconds * 1000) / 1000); }

}  // namespace

std::string to_json(const Result& result) {
  Json detections = Json::array();
  for (const Detection& detection : result.detections) {
    Json item = Json::object();
    item["box"] = detection.box;
    item["label"] = detection.label;
    if (std::string name = class_name(detection.label, result.class_names); !name.empty()) {
      item["class_name"] = std::move(name);
    }
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

std::string to_table(const Result& result) {
  std::size_t label_width = 5;
  for (const Detection& detection : result.detections) {
    label_width = std::max(label_width, characters(class_text(detection.label, result.class_names)));
  }
  std::ostringstream text;
  text << std::fixed << padded("label", label_width) << "   score        x1        y1        x2        y2\n";
  for (const Detection& detection : result.detections) {
    text << padded(class_text(detection.label, result.class_names), label_width) << std::setprecision(4) << std::setw(8)
         << detection.score << std::setprecision(1);
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

}  // namespace hybrid_rt::detect_app
