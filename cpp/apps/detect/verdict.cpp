#include "verdict.h"

#include <algorithm>
#include <iomanip>
#include <sstream>

namespace hybrid_rt::detect_app {
namespace {

/// Formats the percentiles measured here and those of the contract, one line per size.
std::string to_text(const LatencyCheck& check) {
  std::ostringstream text;
  text << std::fixed << std::setprecision(2);
  text << "  latency contract " << (check.holds() ? "holds" : "DOES NOT HOLD") << " on " << to_string(check.machine)
       << "\n";
  for (const SizeComparison& size : check.sizes) {
    const SizeLatency& found = size.found;
    const SizeLatency& promised = size.promised;
    text << "    " << found.height << "x" << found.width << ", ms: p50 " << found.p50 << " of " << promised.p50
         << ", p95 " << found.p95 << " of " << promised.p95;
    if (found.p99 && promised.p99) text << ", p99 " << *found.p99 << " of " << *promised.p99;
    text << " (" << found.count << " calls)\n";
  }
  for (const std::string& failure : check.failures) text << "    TOO SLOW: " << failure << "\n";
  for (const std::string& note : check.notes) text << "    note: " << note << "\n";
  return text.str();
}

}  // namespace

std::string to_text(const Verification& verification, const std::string& model) {
  std::ostringstream text;
  text << model << ": " << (verification.matches() ? "matches its detector" : "DIFFERS from its detector") << "\n";
  for (const EngineChoice& engine : verification.engines) {
    text << "  " << engine.name << ": " << engine.description << "\n";
  }
  for (const BoxMatch& match : verification.pictures) {
    text << "  " << match.where << ": " << match.matched << " of " << match.expected << " boxes matched among "
         << match.found << std::fixed << std::setprecision(4) << ", worst IoU " << match.min_iou << std::setprecision(2)
         << ", box drift " << match.max_box_drift << " pixels" << std::defaultfloat << ", score drift "
         << match.max_score_difference;
    if (match.min_mask_iou) text << std::setprecision(4) << ", mask IoU " << *match.min_mask_iou;
    if (match.max_keypoint_distance) {
      text << std::fixed << std::setprecision(2) << ", keypoint drift " << *match.max_keypoint_distance << " pixels"
           << std::defaultfloat;
    }
    text << "\n";
  }
  if (!verification.outputs.empty()) {
    const auto worst = std::max_element(
        verification.outputs.begin(), verification.outputs.end(),
        [](const OutputError& a, const OutputError& b) { return a.relative_error < b.relative_error; });
    const size_t count = verification.outputs.size();
    text << "  " << count << (count == 1 ? " output" : " outputs") << ", worst relative error " << std::setprecision(2)
         << worst->relative_error << "\n";
  }
  for (const std::string& failure : verification.failures) text << "  FAILED: " << failure << "\n";
  if (!verification.compared) text << "  (not compared when it was converted: verify=False)\n";
  if (verification.latency) text << to_text(*verification.latency);
  return text.str();
}

}  // namespace hybrid_rt::detect_app
