#include "operators/cuda_operators.h"

#include <filesystem>
#include <string_view>

#include "common/library_directory.h"
#include "common/platform/shared_library.h"
#include "hybrid_rt/log.h"
#include "hybrid_rt/plugin/backend.h"
#include "operators/head_operator_checks.h"
#include "operators/head_operators.h"

namespace hybrid_rt::operators {
namespace {

/// The table, or the reason why there is none.
struct Opened {
  const CudaOperators* operators = nullptr;
  std::string failure;
};

Opened open(const std::string& path) {
  std::error_code failed;
  if (!std::filesystem::exists(path, failed)) {
    return {nullptr, "there is no " + path};
  }
  // Never closed, because kernels may run until the process ends.
  void* handle = platform::open_library(path, platform::Symbols::kForCaller);
  if (handle == nullptr) {
    return {nullptr, platform::library_failure()};
  }
  using Entry = const CudaOperators* (*)();
  const auto entry = reinterpret_cast<Entry>(platform::find_symbol(handle, "hybrid_rt_cuda_operators"));
  if (entry == nullptr) {
    return {nullptr, path + " exports no hybrid_rt_cuda_operators"};
  }
  if (std::string refusal = refusal_of(*entry()); !refusal.empty()) {
    return {nullptr, std::move(refusal)};
  }
  return {entry(), ""};
}

/// Warns once that poolings without a CUDA kernel copy their tensors.
void warn_of_copies() {
  static const bool is_said = [] {
    log(LogLevel::kWarning,
        "roi_pool, ps_roi_pool and ps_roi_align have no CUDA kernels: they run on the CPU, with copies there and back");
    return true;
  }();
  (void)is_said;
}

std::tuple<at::Tensor, at::Tensor> moved(const std::tuple<at::Tensor, at::Tensor>& results, at::Device device) {
  return {std::get<0>(results).to(device), std::get<1>(results).to(device)};
}

/// Returns the usable CUDA operators; null if there are none.
const CudaOperators* cuda_operators() {
  static const CudaOperators* const operators = open_cuda_operators(cuda_operators_path());
  return operators;
}

}  // namespace

std::string refusal_of(const CudaOperators& operators) {
  if (operators.abi_version != kCudaOperatorsAbiVersion) {
    return "they were built for operator interface " + std::to_string(operators.abi_version) +
           ", this is hybrid_rt's " + std::to_string(kCudaOperatorsAbiVersion);
  }
  if (std::string_view(operators.torch_version) != HYBRID_RT_TORCH_VERSION) {
    return std::string("they were built with torch ") + operators.torch_version +
           ", this is torch " HYBRID_RT_TORCH_VERSION;
  }
  return "";
}

const CudaOperators* open_cuda_operators(const std::string& path) {
  const Opened opened = open(path);
  if (opened.operators == nullptr) {
    log(LogLevel::kWarning, "the CUDA kernels of nms and roi_align can't be used (" + opened.failure +
                                "): both run on the CPU, with copies there and back. Install a CUDA toolkit (nvcc) of "
                                "torch's major version and build hybrid_rt again.");
  }
  return opened.operators;
}

std::string cuda_operators_path() {
  return (library_directory(Links::kFollowed) / ("hybrid_rt_cuda_operators" + std::string(platform::kLibrarySuffix)))
      .string();
}

at::Tensor nms_through_cpu(const at::Tensor& dets, const at::Tensor& scores, double iou_threshold) {
  check_nms(dets, scores);
  return nms(dets.cpu(), scores.cpu(), iou_threshold).to(dets.device());
}

at::Tensor roi_align_through_cpu(const at::Tensor& input, const at::Tensor& rois, double spatial_scale,
                                 int64_t pooled_height, int64_t pooled_width, int64_t sampling_ratio, bool aligned) {
  check_roi_align(input, rois, pooled_height, pooled_width);
  return roi_align(input.cpu(), rois.cpu(), spatial_scale, pooled_height, pooled_width, sampling_ratio, aligned)
      .to(input.device());
}

std::tuple<at::Tensor, at::Tensor> roi_pool_through_cpu(const at::Tensor& input, const at::Tensor& rois,
                                                        double spatial_scale, int64_t pooled_height,
                                                        int64_t pooled_width) {
  check_pooling("roi_pool", input, rois, pooled_height, pooled_width);
  warn_of_copies();
  return moved(roi_pool(input.cpu(), rois.cpu(), spatial_scale, pooled_height, pooled_width), input.device());
}

std::tuple<at::Tensor, at::Tensor> ps_roi_pool_through_cpu(const at::Tensor& input, const at::Tensor& rois,
                                                           double spatial_scale, int64_t pooled_height,
                                                           int64_t pooled_width) {
  check_position_sensitive_pooling("ps_roi_pool", input, rois, pooled_height, pooled_width);
  warn_of_copies();
  return moved(ps_roi_pool(input.cpu(), rois.cpu(), spatial_scale, pooled_height, pooled_width), input.device());
}

std::tuple<at::Tensor, at::Tensor> ps_roi_align_through_cpu(const at::Tensor& input, const at::Tensor& rois,
                                                            double spatial_scale, int64_t pooled_height,
                                                            int64_t pooled_width, int64_t sampling_ratio) {
  check_position_sensitive_pooling("ps_roi_align", input, rois, pooled_height, pooled_width);
  warn_of_copies();
  return moved(ps_roi_align(input.cpu(), rois.cpu(), spatial_scale, pooled_height, pooled_width, sampling_ratio),
               input.device());
}

at::Tensor nms_on_cuda(const at::Tensor& dets, const at::Tensor& scores, double iou_threshold) {
  check_nms(dets, scores);
  const CudaOperators* const operators = cuda_operators();
  const auto function = operators == nullptr ? &nms_through_cpu : operators->nms;
  return function(dets, scores, iou_threshold);
}

at::Tensor roi_align_on_cuda(const at::Tensor& input, const at::Tensor& rois, double spatial_scale,
                             int64_t pooled_height, int64_t pooled_width, int64_t sampling_ratio, bool aligned) {
  check_roi_align(input, rois, pooled_height, pooled_width);
  const CudaOperators* const operators = cuda_operators();
  const auto function = operators == nullptr ? &roi_align_through_cpu : operators->roi_align;
  return function(input, rois, spatial_scale, pooled_height, pooled_width, sampling_ratio, aligned);
}

}  // namespace hybrid_rt::operators
