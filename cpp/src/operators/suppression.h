#pragma once

#include <cstdint>
#include <vector>

// The greedy step of non-maximum suppression; free of torch.

namespace hybrid_rt::operators {

/// Suppresses boxes, one group per call, and keeps its memory between calls.
template <typename T>
class Suppression {
 public:
  /// Selects the boxes to keep. `boxes` are (x1, y1, x2, y2), best score first; a box is dropped if its intersection
  /// over union with a kept one is above `threshold`. Writes the ascending positions of the kept boxes to `kept`, which
  /// has room for `count`, and returns their number.
  int64_t run(const T* boxes, int64_t count, T threshold, int64_t* kept);

 private:
  std::vector<T> storage_;  // x1, y1, x2, y2 and area of the kept boxes, each in its own array
};

}  // namespace hybrid_rt::operators
