#pragma once

#include <cstdint>
#include <vector>

// Selects the anchors that pass in each class, for detectors that score all classes per anchor; free of torch.

namespace hybrid_rt::operators {

/// One anchor in one class.
struct Candidate {
  float score;
  int64_t anchor;
};

/// The candidates of all classes in one array, grouped by class.
struct ClassCandidates {
  std::vector<Candidate> all;
  std::vector<int64_t> begin;  ///< start of each class, and the end: [classes + 1]
};

/// Counts the scores above `threshold` per class in rows [first_row .. last_row) of [rows, classes], from class 1 on
/// (class 0 is the background).
void count_candidates(const float* scores, int64_t classes, int64_t first_row, int64_t last_row, float threshold,
                      int32_t* counts);

/// Writes these scores to all[next[class]...], in the order of the anchors, and advances `next`.
void place_candidates(const float* scores, int64_t classes, int64_t first_row, int64_t last_row, float threshold,
                      Candidate* all, int64_t* next);

/// Moves the `wanted` best of [begin, end) to the front, best first. Returns false if two of them, or the last of them
/// and one that is left out, have the same score, because then another order is equally good.
bool bring_best_to_front(Candidate* begin, Candidate* end, int64_t wanted);

}  // namespace hybrid_rt::operators
