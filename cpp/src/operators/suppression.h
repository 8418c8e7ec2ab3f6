#pragma once

#include <cstdint>
#include <vector>

// The greedy suppression of non-maximum suppression; free of torch.

namespace hybrid_rt::operators {

/// Suppresses boxes, group after group: its memory is kept between the calls.
template <typename T>
class Suppression {
 public:
  /// Tells which boxes stay. `boxes`: (x1, y1, x2, y2) each, best score first; a box goes when its intersection over
  /// union with one that stays is above `threshold`. Writes the positions of those that stay, ascending, to `kept`,
  /// which has room for `count`, and returns how many they are.
  int64_t run(const T* boxes, int64_t count, T threshold, int64_t* kept);

 private:
  std::vector<T> storage_;  // x1, y1, x2, y2 and area of the boxes that stay, each in an array of its own
};

}  // namespace hybrid_rt::operators
