#include <ATen/ops/empty.h>
#include <ATen/ops/sort.h>

#include <algorithm>
#include <limits>
#include <optional>
#include <tuple>
#include <vector>

#include "operators/head_operator_checks.h"
#include "operators/head_operators.h"

#include "operators/no_contraction.h"

#include "operators/box_overlap.h"  // after the pragmas: its arithmetic must not be contracted either

namespace hybrid_rt::operators {
namespace {

constexpr int64_t kChunk = 64;  // boxes compared between two looks at the result

/// The coordinates and areas of boxes, each in an array of its own.
template <typename T>
struct BoxArrays {
  explicit BoxArrays(int64_t size) : storage(5 * size), size(size) {}

  T* x1() { return storage.data(); }
  T* y1() { return storage.data() + size; }
  T* x2() { return storage.data() + 2 * size; }
  T* y2() { return storage.data() + 3 * size; }
  T* area() { return storage.data() + 4 * size; }

  std::vector<T> storage;
  int64_t size;
};

/// Views of `size` boxes; passed by value into the clones, which the compiler knows not to alias.
template <typename T>
struct BoxPointers {
  T* __restrict x1;
  T* __restrict y1;
  T* __restrict x2;
  T* __restrict y2;
  T* __restrict area;
};

/// Tries the boxes in their order and compares each with those kept so far, until one suppresses it. `kept` has room
/// for a multiple of kChunk boxes, whose areas are NaN: such a box suppresses nothing. Returns how many stay.
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

template <typename T>
at::Tensor nms_of(const at::Tensor& dets, const at::Tensor& scores, double iou_threshold) {
  const int64_t count = dets.size(0);
  const at::Tensor order_tensor =
      std::get<1>(at::sort(scores, /*stable=*/std::optional<bool>(true), /*dim=*/0, /*descending=*/true));
  const int64_t* order = order_tensor.const_data_ptr<int64_t>();

  std::vector<T> sorted(4 * count);
  const T* source = dets.const_data_ptr<T>();
  const int64_t row_stride = dets.stride(0);
  const int64_t column_stride = dets.stride(1);
  for (int64_t i = 0; i < count; ++i) {
    for (int64_t j = 0; j < 4; ++j) {
      sorted[4 * i + j] = source[order[i] * row_stride + j * column_stride];
    }
  }

  const int64_t room = (count + kChunk - 1) / kChunk * kChunk;
  BoxArrays<T> kept(room);
  std::fill_n(kept.area(), room, std::numeric_limits<T>::quiet_NaN());
  std::vector<int64_t> positions(count);
  const int64_t kept_count =
      suppress_boxes(sorted.data(), count, round_down<T>(iou_threshold),
                     BoxPointers<T>{kept.x1(), kept.y1(), kept.x2(), kept.y2(), kept.area()}, positions.data());

  at::Tensor result = at::empty({kept_count}, order_tensor.options());
  std::transform(positions.begin(), positions.begin() + kept_count, result.mutable_data_ptr<int64_t>(),
                 [order](int64_t position) { return order[position]; });
  return result;
}

}  // namespace

at::Tensor nms(const at::Tensor& dets, const at::Tensor& scores, double iou_threshold) {
  check_nms(dets, scores);
  return dets.scalar_type() == at::kFloat ? nms_of<float>(dets, scores, iou_threshold)
                                          : nms_of<double>(dets, scores, iou_threshold);
}

}  // namespace hybrid_rt::operators
