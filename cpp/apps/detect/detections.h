#pragma once

#include <hybrid_rt/class_names.h>
#include <hybrid_rt/detections.h>
#include <hybrid_rt/engine_choice.h>

#include <cstdint>
#include <string>
#include <vector>

namespace hybrid_rt::detect_app {

/// Milliseconds of each step, measured with a monotonic clock.
struct Timing {
  double load = 0;
  double decode = 0;         ///< from the file to the input tensor on its device
  double first = 0;          ///< the first forward
  std::vector<double> runs;  ///< later forwards, at least one
};

/// Everything that is printed.
struct Result {
  std::vector<Detection> detections;
  ClassNames class_names;
  std::vector<EngineChoice> engines;
  Timing timing;
};

/// Formats the result as one line of JSON. Numbers that JSON can't express (NaN, infinities) become null.
std::string to_json(const Result& result);

/// Formats the result as a table for users. Labels without a name are shown as numbers.
std::string to_table(const Result& result);

}  // namespace hybrid_rt::detect_app
