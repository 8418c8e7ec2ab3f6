#pragma once

#include <cstdint>
#include <vector>

// Which of many scores are worth a closer look; free of torch.

namespace hybrid_rt::operators {

/// Appends to `found` the indices of the values[begin .. end) that are not below `bound`, ascending; NaN is left out.
void find_candidates(const float* values, int64_t begin, int64_t end, float bound, std::vector<int64_t>& found);

/// The greatest float of which no value with sigmoid(value) > score lies below, with room for the rounding of any way
/// to compute the sigmoid. `score` is at least 1e-15; infinity where no sigmoid is above it.
float logit_bound(double score);

}  // namespace hybrid_rt::operators
