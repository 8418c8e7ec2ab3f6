#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string>
#include <tuple>

// nms and roi_align for CUDA tensors. The kernels are in a separate library (operators/cuda), which is opened on first
// use, so that this library serves machines with and without CUDA. If that library is missing, the CPU kernels are
// used.

namespace hybrid_rt::operators {

/// The table that hybrid_rt_cuda_operators.so exports as `hybrid_rt_cuda_operators`. Its functions take CUDA tensors on
/// one device that have passed check_nms and check_roi_align.
struct CudaOperators {
  int abi_version;
  const char* torch_version;  ///< "MAJOR.MINOR" of the torch it was compiled with
  at::Tensor (*nms)(const at::Tensor& dets, const at::Tensor& scores, double iou_threshold);
  at::Tensor (*roi_align)(const at::Tensor& input, const at::Tensor& rois, double spatial_scale, int64_t pooled_height,
                          int64_t pooled_width, int64_t sampling_ratio, bool aligned);
};

inline constexpr int kCudaOperatorsAbiVersion = 1;

/// Returns why the table can't be used by this library; empty if it can.
std::string refusal_of(const CudaOperators& operators);

/// Opens the library at `path` until the process ends. Returns null if it can't be used, and warns with the reason and
/// a remedy.
const CudaOperators* open_cuda_operators(const std::string& path);

/// Returns the path of hybrid_rt_cuda_operators.so: next to this library.
std::string cuda_operators_path();

/// Like nms and roi_align of head_operators.h, for tensors on any device: copies them to the CPU and the result back.
/// Refuses tensors on different devices.
at::Tensor nms_through_cpu(const at::Tensor& dets, const at::Tensor& scores, double iou_threshold);
at::Tensor roi_align_through_cpu(const at::Tensor& input, const at::Tensor& rois, double spatial_scale,
                                 int64_t pooled_height, int64_t pooled_width, int64_t sampling_ratio, bool aligned);

/// Like nms and roi_align of head_operators.h, for CUDA tensors. Both wait for the GPU (nms for the number of kept
/// boxes, roi_align for the check of the boxes), so neither can be captured in a CUDA graph. Throws Error
/// (ErrorKind::kBackend) if the GPU can't run the kernels.
at::Tensor nms_on_cuda(const at::Tensor& dets, const at::Tensor& scores, double iou_threshold);
at::Tensor roi_align_on_cuda(const at::Tensor& input, const at::Tensor& rois, double spatial_scale,
                             int64_t pooled_height, int64_t pooled_width, int64_t sampling_ratio, bool aligned);

/// Like those of head_operators.h, for tensors on any device: copies them to the CPU and the results back, and warns
/// once.
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
