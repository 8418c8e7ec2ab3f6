#include "answer.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <nlohmann/json.hpp>

#include "annotate.h"
#include "rle.h"

namespace hybrid_rt::serve {
namespace {

// Keeps the order of insertion. Numbers are floats, so that 0.91f is printed as 0.91 and read back as the same float.
using Json =
    nlohmann::basic_json<nlohmann::ordered_map, std::vector, std::string, bool, std::int64_t, std::uint64_t, float>;

constexpr float kMaskThreshold = 0.5F;

const ClassNames& names_for(const DetectResult& result, const AnswerOptions& options) {
  return options.class_names.empty() ? *result.class_names : options.class_names;
}

/// Returns a row of a tensor as nested lists.
Json list_of(const at::Tensor& row) {
  if (row.dim() == 0) return row.item<float>();
  Json list = Json::array();
  for (std::int64_t i = 0; i < row.size(0); ++i) list.push_back(list_of(row[i]));
  return list;
}

Json object_of(const DetectResult& result, std::size_t i, const AnswerOptions& options) {
  const Detections& found = result.detections;
  const Detection& detection = found.objects[i];
  const auto row = static_cast<std::int64_t>(i);
  Json object = Json::object();
  object["box"] = detection.box;
  object["label"] = detection.label;
  if (const std::string name = class_name(detection.label, names_for(result, options)); !name.empty()) {
    object["class_name"] = name;
    object["name"] = name;  // the older name of this field, before the other programs had it
  }
  object["score"] = detection.score;
  if (options.masks && found.masks.defined()) {
    const at::Tensor mask = found.masks[row];
    object["mask"] = {
        {"size", {mask.size(0), mask.size(1)}},
        {"counts", run_lengths(mask.const_data_ptr<float>(), mask.size(0), mask.size(1), kMaskThreshold)}};
  }
  if (found.keypoints.defined()) object["keypoints"] = list_of(found.keypoints[row]);
  if (found.keypoint_scores.defined()) object["keypoint_scores"] = list_of(found.keypoint_scores[row]);
  return object;
}

float milliseconds(double seconds) { return static_cast<float>(std::round(seconds * 1e6) / 1e3); }

bool is_shown(const Detection& detection, const AnswerOptions& options) {
  // Not "<", so that a score of NaN is shown unless a minimum score was requested.
  return options.min_score <= 0 || detection.score >= options.min_score;
}

}  // namespace

std::string to_json(const Answer& answer, const AnswerOptions& options) {
  Json images = Json::array();
  DetectTiming longest;
  for (const DetectResult& result : answer.images) {
    Json detections = Json::array();
    for (std::size_t i = 0; i < result.detections.objects.size(); ++i) {
      if (is_shown(result.detections.objects[i], options)) {
        detections.push_back(object_of(result, i, options));
      }
    }
    images.push_back({{"width", result.width}, {"height", result.height}, {"detections", std::move(detections)}});
    longest.queue = std::max(longest.queue, result.timing.queue);
    longest.decode = std::max(longest.decode, result.timing.decode);
    longest.run = std::max(longest.run, result.timing.run);
  }
  Json engines = Json::object();
  for (const EngineChoice& engine : answer.engines) {
    for (const std::string& segment : engine.segments) engines[segment] = engine.backend;
  }
  const Json document = {{"request_id", answer.request_id},
                         {"model", answer.model},
                         {"pictures", std::move(images)},
                         {"engines", std::move(engines)},
                         {"timing_ms",
                          {{"queue", milliseconds(longest.queue)},
                           {"decode", milliseconds(longest.decode)},
                           {"run", milliseconds(longest.run)},
                           {"total", milliseconds(answer.total_seconds)}}}};
  return document.dump(-1, ' ', false, Json::error_handler_t::replace);
}

void draw(apps::Image& image, const DetectResult& result, const AnswerOptions& options) {
  std::vector<apps::Annotation> annotations;
  for (const Detection& detection : result.detections.objects) {
    if (!is_shown(detection, options)) continue;
    char score[16];
    std::snprintf(score, sizeof score, "%.2f", static_cast<double>(detection.score));
    annotations.push_back(
        {detection.box, detection.label, class_text(detection.label, names_for(result, options)), score});
  }
  annotate(image, annotations);
}

}  // namespace hybrid_rt::serve
