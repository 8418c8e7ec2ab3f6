#pragma once

#include <hybrid_rt/bundle.h>

#include <array>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

namespace hybrid_rt::detect {

struct Detection {
  std::array<float, 4> box{};  ///< x1, y1, x2, y2 in pixels of the picture
  std::int64_t label = 0;
  float score = 0;
};

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
  std::vector<std::pair<std::string, std::string>> engines;  ///< (segment, backend)
  Timing timing;
};

/// Throws Error(kInput) that shows forward's signature unless forward takes List[Tensor] (and nothing else without a
/// default).
void require_picture_input(const torch::jit::Module& module);

/// The detections of the only picture of a List[Dict[str, Tensor]], in the detector's order: "boxes" [n, 4],
/// "labels" [n], "scores" [n]; other keys are ignored. Throws Error(kInput) that names what differs.
std::vector<Detection> detections_from(const torch::jit::IValue& output);

/// One line. Numbers that JSON can't express (NaN, infinities) become null.
std::string to_json(const Result& result);

/// For people. Labels without a name are shown as numbers.
std::string to_table(const Result& result, const std::vector<std::string>& label_names);

/// names[label], or the number.
std::string label_text(std::int64_t label, const std::vector<std::string>& label_names);

}  // namespace hybrid_rt::detect
