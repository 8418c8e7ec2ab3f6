#include "rle.h"

#include <cstddef>
#include <vector>

namespace hybrid_rt::serve {
namespace {

/// Returns the lengths of alternating runs of 0, 1, 0, ...; the first may be 0.
std::vector<std::int64_t> runs_of(const float* mask, std::int64_t height, std::int64_t width, float threshold) {
  std::vector<std::int64_t> runs;
  bool current = false;
  std::int64_t length = 0;
  for (std::int64_t x = 0; x < width; ++x) {
    for (std::int64_t y = 0; y < height; ++y) {
      const bool is_set = mask[y * width + x] >= threshold;
      if (is_set != current) {
        runs.push_back(length);
        length = 0;
        current = is_set;
      }
      ++length;
    }
  }
  runs.push_back(length);
  return runs;
}

}  // namespace

std::string run_lengths(const float* mask, std::int64_t height, std::int64_t width, float threshold) {
  const std::vector<std::int64_t> runs = runs_of(mask, height, width, threshold);
  std::string text;
  for (std::size_t i = 0; i < runs.size(); ++i) {
    // From the fourth run on, the difference to the run before the last is stored. A character has five bits of the
    // value; its sixth bit means that more follow.
    std::int64_t value = i > 2 ? runs[i] - runs[i - 2] : runs[i];
    bool more = true;
    while (more) {
      std::int64_t bits = value & 0x1f;
      value >>= 5;
      more = (bits & 0x10) != 0 ? value != -1 : value != 0;
      if (more) bits |= 0x20;
      text += static_cast<char>(bits + 48);
    }
  }
  return text;
}

}  // namespace hybrid_rt::serve
