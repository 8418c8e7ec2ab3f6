#include "operators/suppression.h"

#include <algorithm>
#include <limits>

#include "operators/no_contraction.h"

#include "operators/box_overlap.h"  // after the pragmas, which apply to its arithmetic

namespace hybrid_rt::operators {
namespace {

constexpr int64_t kChunk = 64;  // boxes compared between two checks of the result

/// Views of boxes, passed to the clones by value, so that the compiler knows that they do not alias.
template <typename T>
struct BoxPointers {
  T* __restrict x1;
  T* __restrict y1;
  T* __restrict x2;
  T* __restrict y2;
  T* __restrict area;
};

/// Compares each box in order with those kept so far, until one drops it. `kept` has room for a multiple of kChunk
/// boxes, whose areas are initially NaN: such a box drops nothing. Returns the number of kept boxes.
template <typename T>
[[gnu::always_inline]] inline int64_t suppress(const T* boxes, int64_t boxes_count, T threshold, BoxPointers<T> kept,
                                               int64_t* kept_positions) {
  int64_t kept_count = 0;
  for (int64_t position = 0; position < boxes_count; ++position) {
    const T* const coordinates = boxes + 4 * position;
    const Corners<T> box{coordinates[0], coordinates[1], coordinates[2], coordinates[3]};
    const T area = area_of(box);
    bool stays = true;
    for (int64_t begin = 0; begin < kept_count && stays; begin += kChunk) {
      int any = 0;
      for (int64_t i = begin; i < begin + kChunk; ++i) {
        const Corners<T> kept_box{kept.x1[i], kept.y1[i], kept.x2[i], kept.y2[i]};
        any |= overlap_of(kept_box, kept.area[i], box, area) > threshold ? 1 : 0;
      }
      stays = any == 0;
    }
    if (stays) {
      kept.x1[kept_count] = box.x1;
      kept.y1[kept_count] = box.y1;
      kept.x2[kept_count] = box.x2;
      kept.y2[kept_count] = box.y2;
      kept.area[kept_count] = area;
      kept_positions[kept_count++] = position;
    }
  }
  return kept_count;
}

HYBRID_RT_CLONES int64_t suppress_boxes(const float* boxes, int64_t boxes_count, float threshold,
                                        BoxPointers<float> kept, int64_t* kept_positions) {
  return suppress<float>(boxes, boxes_count, threshold, kept, kept_positions);
}

HYBRID_RT_CLONES int64_t suppress_boxes(const double* boxes, int64_t boxes_count, double threshold,
                                        BoxPointers<double> kept, int64_t* kept_positions) {
  return suppress<double>(boxes, boxes_count, threshold, kept, kept_positions);
}

}  // namespace

template <typename T>
int64_t Suppression<T>::run(const T* boxes, int64_t count, T threshold, int64_t* kept) {
  const int64_t room = (count + kChunk - 1) / kChunk * kChunk;
  if (static_cast<int64_t>(storage_.size()) < 5 * room) {
    storage_.resize(5 * room);
  }
  T* const data = storage_.data();
  std::fill_n(data + 4 * room, room, std::numeric_limits<T>::quiet_NaN());
  return suppress_boxes(boxes, count, threshold,
                        BoxPointers<T>{data, data + room, data + 2 * room, data + 3 * room, data + 4 * room}, kept);
}

template class Suppression<float>;
template class Suppression<double>;

}  // namespace hybrid_rt::operators
