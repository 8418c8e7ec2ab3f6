#pragma once

#include <hybrid_rt/detector.h>

#include <string>
#include <vector>

#include "picture.h"

namespace hybrid_rt::serve {

/// What an answer is asked to hold.
struct AnswerOptions {
  float min_score = 0;
  bool masks = true;
  ClassNames class_names{};  ///< in place of the bundle's, unless empty
};

/// All that is answered to one request.
struct Answer {
  std::string request_id;
  std::string model;
  std::vector<DetectResult> pictures;
  std::vector<EngineChoice> engines;
  double total_seconds = 0;
};

/// One line; see openapi.json. Numbers that JSON can't express become null.
std::string to_json(const Answer& answer, const AnswerOptions& options);

/// Draws what was found, as hybrid-rt-detect does.
void draw(apps::Picture& picture, const DetectResult& result, const AnswerOptions& options);

}  // namespace hybrid_rt::serve
