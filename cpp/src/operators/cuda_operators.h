#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string>
#include <tuple>

// nms and roi_align of CUDA tensors. The kernels lie in a library of their own (operators/cuda), opened when first
// needed, so that this one serves machines with and without CUDA. Where that one is missing, the CPU kernels do the
// work.

namespace hybrid_rt::operators {

/// What hybrid_rt_cuda_operators.so exports as `hybrid_rt_cuda_operators`. Its functions take what check_nms and
/// check_roi_align have passed, of CUDA tensors on one device.
struct CudaOperators {
  int abi_version;
  const char* torch_version;  ///< "MAJOR.MINOR" of the torch it was compiled with
  at::Tensor (*nms)(const at::Tensor& dets, const at::Tensor& scores, double iou_threshold);
  at::Tensor (*roi_align)(const at::Tensor& input, const at::Tensor& rois, double spatial_scale, int64_t pooled_height,
                          int64_t pooled_width, int64_t sampling_ratio, bool aligned);
};

inline constexpr int kCudaOperatorsAbiVersion = 1;

/// Why these can't be called from this library; empty if they can.
std::string refusal_of(const CudaOperators& operators);

/// Opens the library at `path`, for as long as the process lives. Null if it can't be used: then a warning says why,
/// and what mends it.
const CudaOperators* open_cuda_operators(const std::string& path);

/// Where hybrid_rt_cuda_operators.so is looked for: beside this library.
std::string cuda_operators_path();

/// As nms and roi_align of head_operators.h, for tensors on any device: copied to the CPU, the result back. What is on
/// different devices is refused.
at::Tensor nms_through_cpu(const at::Tensor& dets, const at::Tensor& scores, double iou_threshold);
at::Tensor roi_align_through_cpu(const at::Tensor& input, const at::Tensor& rois, double spatial_scale,
                                 int64_t pooled_height, int64_t pooled_width, int64_t sampling_ratio, bool aligned);

/// As nms and roi_align of head_operators.h, for CUDA tensors. Both wait for the GPU: nms for the number of boxes that
/// stay, roi_align for the check of the boxes, so neither can be captured in a CUDA graph. Throws Error
/// (ErrorKind::kBackend) if the GPU can't run the kernels.
at::Tensor nms_on_cuda(const at::Tensor& dets, const at::Tensor& scores, double iou_threshold);
at::Tensor roi_align_on_cuda(const at::Tensor& input, const at::Tensor& rois, double spatial_scale,
                             int64_t pooled_height, int64_t pooled_width, int64_t sampling_ratio, bool aligned);

/// As of head_operators.h, for tensors on any device: copied to the CPU, the results back; a warning says so once.
std::tuple<at::Tensor, at::Tensor> roi_pool_through_cpu(const at::Tensor& input, const at::Tensor& rois,
                                                        double spatial_scale, int64_t pooled_height,
                                                        int64_t pooled_width);
std::tuple<at::Tensor, at::Tensor> ps_roi_pool_through_cpu(const at::Tensor& input, const at::Tensor& rois,
                                                           double spatial_scale, int64_t pooled_height,
                                                           int64_t pooled_width);
std::tuple<at::Tensor, at::Tensor> ps_roi_align_through_cpu(const at::Tensor& input, const at::Tensor& rois,
                                                            double spatial_scale, int64_t pooled_height,
                                                            int64_t pooled_width, int64_t sampling_ratio);

}  // namespace hybrid_rt::operators
