#include "operators/class_candidates.h"

#include <algorithm>

#include "operators/no_contraction.h"

namespace hybrid_rt::operators {
namespace {

bool is_better(const Candidate& left, const Candidate& right) { return left.score > right.score; }

HYBRID_RT_CLONES void add_passing(const float* __restrict scores, int64_t classes, float threshold,
                                  int32_t* __restrict counts) {
  for (int64_t i = 0; i < classes; ++i) {
    counts[i] += scores[i] > threshold ? 1 : 0;
  }
}

}  // namespace

void count_candidates(const float* scores, int64_t classes, int64_t first_row, int64_t last_row, float threshold,
                      int32_t* counts) {
  for (int64_t row = first_row; row < last_row; ++row) {
    add_passing(scores + row * classes + 1, classes - 1, threshold, counts + 1);
  }
}

void place_candidates(const float* scores, int64_t classes, int64_t first_row, int64_t last_row, float threshold,
                      Candidate* all, int64_t* next) {
  for (int64_t row = first_row; row < last_row; ++row) {
    const float* const row_scores = scores + row * classes;
    for (int64_t i = 1; i < classes; ++i) {
      if (row_scores[i] > threshold) {
        all[next[i]++] = {row_scores[i], row};
      }
    }
  }
}

bool bring_best_to_front(Candidate* begin, Candidate* end, int64_t wanted) {
  Candidate* const cut = begin + wanted;
  if (wanted == 0) return true;
  bool is_determined = true;
  if (cut != end) {
    std::nth_element(begin, cut - 1, end, is_better);
    const float last = cut[-1].score;
    is_determined = std::none_of(cut, end, [last](const Candidate& each) { return each.score == last; });
  }
  std::sort(begin, cut, is_better);
  return is_determined && std::adjacent_find(begin, cut, [](const Candidate& left, const Candidate& right) {
                            return left.score == right.score;
                          }) == cut;
}

}  // namespace hybrid_rt::operators
