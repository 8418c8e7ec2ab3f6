#pragma once

#include <cstdint>
#include <vector>

// Selects the scores that are worth a closer look; free of torch.

namespace hybrid_rt::operators {

/// Appends the ascending indices of those values[begin .. end) that are not below `bound` to `found`. NaN is left out.
void find_candidates(const float* values, int64_t begin, int64_t end, float bound, std::vector<int64_t>& found);

/// Returns a float below which no value has sigmoid(value) > score, with room for the rounding of any way to compute
/// the sigmoid. `score` is at least 1e-15. Returns infinity if no sigmoid is above it.
float logit_bound(double score);

}  // namespace hybrid_rt::operators
