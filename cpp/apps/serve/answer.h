#pragma once

#include <hybrid_rt/detector.h>

#include <string>
#include <vector>

#include "image.h"

namespace hybrid_rt::serve {

/// Options of the contents of an answer.
struct AnswerOptions {
  float min_score = 0;
  bool masks = true;
  ClassNames class_names{};  ///< replace the bundle's names unless empty
};

/// The answer to one request.
struct Answer {
  std::string request_id;
  std::string model;
  std::vector<DetectResult> images;
  std::vector<EngineChoice> engines;
  double total_seconds = 0;
};

/// Returns one line of JSON, see openapi.json. Numbers that JSON can't express become null.
std::string to_json(const Answer& answer, const AnswerOptions& options);

/// Draws the detections as hybrid-rt-detect does.
void draw(apps::Image& image, const DetectResult& result, const AnswerOptions& options);

}  // namespace hybrid_rt::serve
