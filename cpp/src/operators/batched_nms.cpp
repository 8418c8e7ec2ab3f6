#include <ATen/Parallel.h>
#include <ATen/TensorOperators.h>
#include <ATen/ops/_unique2.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/nonzero.h>
#include <ATen/ops/sort.h>
#include <ATen/ops/zeros_like.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <limits>
#include <tuple>
#include <vector>

#include "operators/cuda_operators.h"
#include "operators/detection_operators.h"
#include "operators/head_operator_checks.h"
#include "operators/head_operators.h"
#include "operators/refusal.h"
#include "operators/suppression.h"

namespace hybrid_rt::operators {
namespace {

/// Number of coordinates above which torchvision processes each class separately, and below which it moves the classes
/// apart. The two may round differently, so the same choice is made here.
int64_t most_moved_apart(const at::Device& device) { return device.is_cpu() ? 4000 : 100'000; }

constexpr int64_t kPairsPerThread = 1 << 22;  // of boxes to compare: 2 ms

/// A box's position in the processing order: by class, then by score, best first.
struct Place {
  uint64_t key;
  int64_t box;

  bool operator<(const Place& other) const { return key != other.key ? key < other.key : box < other.box; }
  uint32_t group() const { return static_cast<uint32_t>(key >> 32); }
};

/// Returns a key whose ascending order is the descending order of floats, NaN first; 0 and -0 are equal.
uint32_t descending_key(float score) {
  if (score != score) return 0;
  const float value = score + 0.0F;
  uint32_t bits = 0;
  std::memcpy(&bits, &value, sizeof(bits));
  const uint32_t ascending = (bits & 0x8000'0000U) != 0 ? ~bits : bits | 0x8000'0000U;
  return ~ascending;
}

at::Tensor nms_on_device(const at::Tensor& boxes, const at::Tensor& scores, double iou_threshold) {
  return boxes.is_cpu() ? nms(boxes, scores, iou_threshold) : nms_on_cuda(boxes, scores, iou_threshold);
}

at::Tensor moved_apart(const at::Tensor& boxes, const at::Tensor& scores, const at::Tensor& idxs,
                       double iou_threshold) {
  const at::Tensor offsets = idxs.to(boxes.scalar_type()) * (boxes.max() + 1);
  return nms_on_device(boxes + offsets.unsqueeze(1), scores, iou_threshold);
}

/// Processes the classes one by one with torch's operators.
at::Tensor class_by_class(const at::Tensor& boxes, const at::Tensor& scores, const at::Tensor& idxs,
                          double iou_threshold) {
  at::Tensor stays = at::zeros_like(scores, scores.options().dtype(at::kBool));
  const at::Tensor classes = std::get<0>(at::_unique2(idxs)).cpu();
  for (int64_t i = 0; i < classes.size(0); ++i) {
    const at::Tensor members = at::nonzero(idxs == classes[i].item()).squeeze(1);
    const at::Tensor kept =
        nms_on_device(boxes.index_select(0, members), scores.index_select(0, members), iou_threshold);
    stays.index_fill_(0, members.index_select(0, kept), 1);
  }
  const at::Tensor kept = at::nonzero(stays).squeeze(1);
  const at::Tensor order = std::get<1>(at::sort(scores.index_select(0, kept), 0, /*descending=*/true));
  return kept.index_select(0, order);
}

std::vector<Place> ordered(const at::Tensor& scores, const at::Tensor& idxs) {
  const int64_t count = scores.size(0);
  const float* const score = scores.const_data_ptr<float>();
  const int64_t* const group = idxs.const_data_ptr<int64_t>();
  std::vector<Place> places(count);
  for (int64_t i = 0; i < count; ++i) {
    places[i] = {static_cast<uint64_t>(group[i]) << 32 | descending_key(score[i]), i};
  }
  std::sort(places.begin(), places.end());
  return places;
}

/// Returns the positions at which the classes begin, and the end.
std::vector<int64_t> class_bounds(const std::vector<Place>& places) {
  const auto count = static_cast<int64_t>(places.size());
  std::vector<int64_t> bounds;
  for (int64_t i = 0; i < count; ++i) {
    if (i == 0 || places[i].group() != places[i - 1].group()) bounds.push_back(i);
  }
  bounds.push_back(count);
  return bounds;
}

/// Returns the number of classes that are worth a thread.
int64_t classes_per_thread(const std::vector<int64_t>& bounds) {
  const auto classes = static_cast<int64_t>(bounds.size()) - 1;
  double pairs = 0;
  for (int64_t i = 0; i < classes; ++i) {
    const auto boxes = static_cast<double>(bounds[i + 1] - bounds[i]);
    pairs += boxes * boxes / 2;
  }
  return std::max<int64_t>(static_cast<int64_t>(kPairsPerThread * static_cast<double>(classes) / pairs), 1);
}

bool fit_into_32_bits(const at::Tensor& idxs) {
  const int64_t* const values = idxs.const_data_ptr<int64_t>();
  return std::all_of(values, values + idxs.numel(),
                     [](int64_t value) { return value >= 0 && value <= std::numeric_limits<int32_t>::max(); });
}

/// Does the same as class_by_class in one pass, for contiguous float32 tensors and classes that fit into 32 bits.
at::Tensor class_by_class_at_once(const at::Tensor& boxes, const at::Tensor& scores, const at::Tensor& idxs,
                                  double iou_threshold) {
  const std::vector<Place> places = ordered(scores, idxs);
  const std::vector<int64_t> bounds = class_bounds(places);
  const auto count = static_cast<int64_t>(places.size());
  const auto classes = static_cast<int64_t>(bounds.size()) - 1;
  const float* const source = boxes.const_data_ptr<float>();
  const auto threshold = round_down<float>(iou_threshold);
  std::vector<float> sorted(4 * count);
  std::vector<int64_t> positions(count);
  std::vector<uint8_t> stays(count, 0);
  at::parallel_for(0, classes, classes_per_thread(bounds), [&](int64_t first, int64_t last) {
    Suppression<float> suppression;
    for (int64_t group = first; group < last; ++group) {
      const int64_t begin = bounds[group];
      const int64_t end = bounds[group + 1];
      for (int64_t i = begin; i < end; ++i) {
        std::copy_n(source + 4 * places[i].box, 4, sorted.data() + 4 * i);
      }
      const int64_t kept = suppression.run(sorted.data() + 4 * begin, end - begin, threshold, positions.data() + begin);
      for (int64_t i = 0; i < kept; ++i) {
        stays[places[begin + positions[begin + i]].box] = 1;
      }
    }
  });
  at::Tensor kept = at::empty({std::count(stays.begin(), stays.end(), 1)}, idxs.options());
  int64_t* target = kept.mutable_data_ptr<int64_t>();
  for (int64_t i = 0; i < count; ++i) {
    if (stays[i] != 0) *target++ = i;
  }
  // torch's own sort, because it defines the order of equal scores.
  const at::Tensor order = std::get<1>(at::sort(scores.index_select(0, kept), 0, /*descending=*/true));
  return kept.index_select(0, order);
}

void check_batched_nms(const at::Tensor& boxes, const at::Tensor& scores, const at::Tensor& idxs) {
  check_nms(boxes, scores, "batched_nms");
  const Refuse refuse{"batched_nms"};
  if (idxs.scalar_type() != at::kLong || idxs.dim() != 1 || idxs.size(0) != boxes.size(0)) {
    refuse(c10::str("idxs of dtype Long and shape [", boxes.size(0), "], one class per box"), describe(idxs),
           "Pass one class per box, converted with .long().");
  }
  if (idxs.device() != boxes.device()) {
    refuse("boxes and idxs on one device", c10::str(boxes.device(), " and ", idxs.device()),
           "Move one of them with .to().");
  }
}

}  // namespace

at::Tensor batched_nms(const at::Tensor& boxes, const at::Tensor& scores, const at::Tensor& idxs,
                       double iou_threshold) {
  check_batched_nms(boxes, scores, idxs);
  if (boxes.numel() == 0) {
    return at::empty({0}, idxs.options());
  }
  if (boxes.numel() <= most_moved_apart(boxes.device())) {
    return moved_apart(boxes, scores, idxs, iou_threshold);
  }
  if (boxes.is_cpu() && boxes.scalar_type() == at::kFloat) {
    const at::Tensor classes = idxs.contiguous();
    if (fit_into_32_bits(classes)) {
      return class_by_class_at_once(boxes.contiguous(), scores.contiguous(), classes, iou_threshold);
    }
  }
  return class_by_class(boxes, scores, idxs, iou_threshold);
}

}  // namespace hybrid_rt::operators
