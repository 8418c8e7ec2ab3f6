#include <ATen/Dispatch.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/sort.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <c10/util/StringUtil.h>

#include <cstdint>
#include <limits>
#include <optional>
#include <string>
#include <tuple>

#include "hybrid_rt/error.h"
#include "hybrid_rt/plugin/backend.h"
#include "operators/cuda/kernels.h"
#include "operators/cuda_operators.h"
#include "operators/head_operator_checks.h"

// nms and roi_align for CUDA tensors, with memory from torch's allocator and work on torch's current stream. Memory may
// be freed while the GPU still uses it, because the allocator reuses it only on the same stream.

namespace hybrid_rt::operators::cuda {
namespace {

void require(cudaError_t status, const char* name) {
  if (status == cudaSuccess) {
    return;
  }
  throw Error(ErrorKind::kBackend, "operators", name, "the GPU to run its CUDA kernel",
              c10::str(cudaGetErrorString(status), " (", cudaGetErrorName(status), ")"),
              status == cudaErrorNoKernelImageForDevice || status == cudaErrorUnsupportedPtxVersion
                  ? "Build hybrid_rt for this GPU: -DCMAKE_CUDA_ARCHITECTURES=native."
                  : "An earlier CUDA call may be the one that failed: CUDA_LAUNCH_BLOCKING=1 shows which.");
}

Element element_of(at::ScalarType dtype) {
  return dtype == at::kFloat ? Element::kFloat : dtype == at::kDouble ? Element::kDouble : Element::kHalf;
}

class Event {
 public:
  explicit Event(const char* name) { require(cudaEventCreateWithFlags(&event_, cudaEventDisableTiming), name); }
  Event(const Event&) = delete;
  Event& operator=(const Event&) = delete;
  ~Event() { cudaEventDestroy(event_); }

  operator cudaEvent_t() const { return event_; }

 private:
  cudaEvent_t event_ = nullptr;
};

/// Reads a number back to the host. It waits only for work that was queued before it, so that the GPU does not run
/// idle.
class ReadBack {
 public:
  ReadBack(const int64_t* source, cudaStream_t stream, const char* name)
      : name_(name), target_(at::empty({1}, at::TensorOptions(at::kLong).pinned_memory(true))), arrived_(name) {
    require(cudaMemcpyAsync(target_.mutable_data_ptr(), source, sizeof(*source), cudaMemcpyDeviceToHost, stream), name);
    require(cudaEventRecord(arrived_, stream), name);
  }
  ReadBack(const ReadBack&) = delete;
  ReadBack& operator=(const ReadBack&) = delete;
  ~ReadBack() { cudaEventSynchronize(arrived_); }  // before the memory is freed

  int64_t wait() const {
    require(cudaEventSynchronize(arrived_), name_);
    return *target_.const_data_ptr<int64_t>();
  }

 private:
  const char* name_;
  at::Tensor target_;
  Event arrived_;
};

at::Tensor nms(const at::Tensor& dets, const at::Tensor& scores, double iou_threshold) {
  constexpr const char* kName = "nms";
  const c10::cuda::CUDAGuard guard(dets.device());
  const cudaStream_t stream = c10::cuda::getCurrentCUDAStream();
  const at::TensorOptions integers = dets.options().dtype(at::kLong);
  const int64_t count = dets.size(0);
  if (count == 0) {
    return at::empty({0}, integers);
  }
  const Element element = element_of(dets.scalar_type());
  const bool is_float = element == Element::kFloat;

  // Not the scores themselves, because the order of a NaN with a sign bit in at::sort depends on its algorithm.
  at::Tensor keys = at::empty({count}, integers.dtype(is_float ? at::kInt : at::kLong));
  require(make_sort_keys(element, scores.const_data_ptr(), scores.stride(0), count, keys.mutable_data_ptr(), stream),
          kName);
  const at::Tensor order =
      std::get<1>(at::sort(keys, /*stable=*/std::optional<bool>(true), /*dim=*/0, /*descending=*/true));

  const int64_t groups = (count + kGroup - 1) / kGroup;
  const int64_t mask_groups = mask_groups_of(groups);
  const at::Tensor sorted = at::empty({count, 4}, dets.options());
  const at::Tensor mask = at::empty({mask_groups * kGroup, groups}, integers);
  const at::Tensor removed = at::empty({groups}, integers);
  const at::Tensor kept = at::empty({count}, integers);
  const at::Tensor kept_count = at::empty({1}, integers);
  const NmsBoxes boxes{dets.const_data_ptr(), dets.stride(0), dets.stride(1), count, order.const_data_ptr<int64_t>()};
  const NmsWorkspace workspace{sorted.mutable_data_ptr(), static_cast<uint64_t*>(mask.mutable_data_ptr()), groups,
                               mask_groups, static_cast<uint64_t*>(removed.mutable_data_ptr())};
  const double threshold = is_float ? round_down<float>(iou_threshold) : iou_threshold;
  require(suppress_boxes(element, boxes, threshold, workspace, kept.mutable_data_ptr<int64_t>(),
                         kept_count.mutable_data_ptr<int64_t>(), stream),
          kName);

  const int64_t staying = ReadBack(kept_count.const_data_ptr<int64_t>(), stream, kName).wait();
  at::Tensor result = at::empty({staying}, integers);
  require(cudaMemcpyAsync(result.mutable_data_ptr(), kept.const_data_ptr(), staying * sizeof(int64_t),
                          cudaMemcpyDeviceToDevice, stream),
          kName);
  return result;
}

/// Throws the CPU kernel's error for that box. The arithmetic is the same.
[[noreturn]] void refuse_box(const at::Tensor& rois, int64_t row, const Pooling& pooling, int64_t images) {
  const at::Tensor roi = rois.select(0, row).cpu().contiguous();
  AT_DISPATCH_FLOATING_TYPES_AND_HALF(roi.scalar_type(), "roi_align", [&] {
    Placement<scalar_t> placement;
    check_box(place_box(roi.const_data_ptr<scalar_t>(), 1, pooling, images, placement), images, row);
  });
  throw Error(ErrorKind::kInput, "operators", "roi_align", "boxes that stay the same while it runs",
              c10::str("another box in row ", row), "Wait for the stream that writes rois.");
}

at::Tensor roi_align(const at::Tensor& input, const at::Tensor& rois, double spatial_scale, int64_t pooled_height,
                     int64_t pooled_width, int64_t sampling_ratio, bool aligned) {
  constexpr const char* kName = "roi_align";
  const c10::cuda::CUDAGuard guard(input.device());
  const cudaStream_t stream = c10::cuda::getCurrentCUDAStream();
  at::Tensor output = at::empty({rois.size(0), input.size(1), pooled_height, pooled_width},
                                input.options().memory_format(at::MemoryFormat::Contiguous));
  if (output.numel() == 0) {
    return output;
  }
  constexpr int64_t kMaxBins = std::numeric_limits<int32_t>::max();
  if (pooled_height > kMaxBins / pooled_width) {
    throw Error(ErrorKind::kInput, "operators", kName, c10::str("at most ", kMaxBins, " bins per box"),
                c10::str(pooled_height, " x ", pooled_width), "Check the pooler's options.");
  }
  const Element element = element_of(input.scalar_type());
  const Pooling pooling{spatial_scale, pooled_height, pooled_width, sampling_ratio, aligned};
  const Rois boxes{rois.const_data_ptr(), rois.stride(0), rois.stride(1), rois.size(0)};
  const Features features{input.const_data_ptr(), input.size(0),   input.size(1),   input.size(2),  input.size(3),
                          input.stride(0),        input.stride(1), input.stride(2), input.stride(3)};
  const at::Tensor placements =
      at::empty({boxes.count * static_cast<int64_t>(placement_size(element))}, input.options().dtype(at::kByte));
  const at::Tensor first_refused = at::empty({1}, input.options().dtype(at::kLong));
  require(place_boxes(element, boxes, pooling, features.images, placements.mutable_data_ptr(),
                      first_refused.mutable_data_ptr<int64_t>(), stream),
          kName);
  // The host waits for the check of the boxes, which takes microseconds, while the GPU is already pooling.
  const ReadBack read_back(first_refused.const_data_ptr<int64_t>(), stream, kName);
  require(pool_boxes(element, features, placements.const_data_ptr(), boxes.count, pooling, output.mutable_data_ptr(),
                     stream),
          kName);
  const int64_t refused = read_back.wait();
  if (refused >= 0) {
    refuse_box(rois, refused, pooling, features.images);
  }
  return output;
}

}  // namespace
}  // namespace hybrid_rt::operators::cuda

extern "C" __attribute__((visibility("default"))) const hybrid_rt::operators::CudaOperators*
hybrid_rt_cuda_operators() {
  static const hybrid_rt::operators::CudaOperators operators{hybrid_rt::operators::kCudaOperatorsAbiVersion,
                                                             HYBRID_RT_TORCH_VERSION, &hybrid_rt::operators::cuda::nms,
                                                             &hybrid_rt::operators::cuda::roi_align};
  return &operators;
}
