#pragma once

#include <hybrid_rt/class_names.h>
#include <hybrid_rt/detections.h>
#include <hybrid_rt/engine_choice.h>

#include <cstdint>
#include <string>
#include <vector>

namespace hybrid_rt::detect_app {

/// Milliseconds of each step, by a monotonic clock.
struct Timing {
  double load = 0;
  double decode = 0;         ///< from the file to the input tensor on its device
  double first = 0;          ///< the first forward
  std::vector<double> runs;  ///< the forwards after it; at least one
};

/// All that is printed.
struct Result {
  std::vector<Detection> detections;
  ClassNames class_names;
  std::vector<EngineChoice> engines;
  Timing timing;
};

/// One line. Numbers that JSON can't express (NaN, infinities) become null.
std::string to_json(const Result& result);

/// For people. Labels without a name are shown as numbers.
std::string to_table(const Result& result);

}  // namespace hybrid_rt::detect_app
