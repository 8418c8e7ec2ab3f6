#pragma once

#include <cstdint>
#include <vector>

// Which anchors pass in each class of a detector that scores all classes per anchor; free of torch.

namespace hybrid_rt::operators {

/// One anchor in one class.
struct Candidate {
  float score;
  int64_t anchor;
};

/// The candidates of all classes in one array, those of a class next to each other.
struct ClassCandidates {
  std::vector<Candidate> all;
  std::vector<int64_t> begin;  ///< of each class, and the end: [classes + 1]
};

/// Finds the scores above `threshold` in rows [first_row .. last_row) of [rows, classes], and counts them per class
/// (from class 1 on; class 0 is the background).
void count_candidates(const float* scores, int64_t classes, int64_t first_row, int64_t last_row, float threshold,
                      int32_t* counts);

/// Writes them to all[next[class]...], in the order of the anchors, and moves `next` on.
void place_candidates(const float* scores, int64_t classes, int64_t first_row, int64_t last_row, float threshold,
                      Candidate* all, int64_t* next);

/// Moves the `wanted` best of [begin, end) to its front, best first. Returns false if two of them, or the last of them
/// and one that is left out, have the same score: then there is another order that is as good.
bool bring_best_to_front(Candidate* begin, Candidate* end, int64_t wanted);

}  // namespace hybrid_rt::operators
