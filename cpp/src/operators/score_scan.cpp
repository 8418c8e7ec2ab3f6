#include "operators/score_scan.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "operators/no_contraction.h"

namespace hybrid_rt::operators {
namespace {

constexpr int64_t kBlock = 256;  // values between two checks of the result

/// Returns true if any of `count` values is not below the bound.
HYBRID_RT_CLONES bool any_candidate(const float* values, int64_t count, float bound) {
  int any = 0;
  for (int64_t i = 0; i < count; ++i) {
    any |= values[i] >= bound ? 1 : 0;
  }
  return any != 0;
}

}  // namespace

void find_candidates(const float* values, int64_t begin, int64_t end, float bound, std::vector<int64_t>& found) {
  for (int64_t first = begin; first < end; first += kBlock) {
    const int64_t last = std::min(first + kBlock, end);
    if (!any_candidate(values + first, last - first, bound)) continue;
    for (int64_t i = first; i < last; ++i) {
      if (values[i] >= bound) found.push_back(i);
    }
  }
}

float logit_bound(double score) {
  // The relative error of float32's sigmoid is a few times 6e-8; this leaves room for more than a hundred times that.
  const double lowest = score * (1 - 1e-5);
  if (lowest >= 1) return std::numeric_limits<float>::infinity();
  const auto bound = static_cast<float>(std::log(lowest / (1 - lowest)));
  return std::nextafter(bound, -std::numeric_limits<float>::infinity());
}

}  // namespace hybrid_rt::operators
