#pragma once

#include <torch/script.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

// Images in and detections out, for detectors that take a list of images and return the same as torchvision's.

namespace hybrid_rt {
/// One detected object.
struct Detection {
  std::array<float, 4> box{};  ///< x1, y1, x2, y2 in pixels of the image
  std::int64_t label = 0;      ///< label of the class
  float score = 0;             ///< confidence, 0..1
};

/// Detections of one image, in the detector's order. The tensors are on the CPU, and undefined if the detector has
/// none.
struct Detections {
  std::vector<Detection> objects;  ///< the boxes, with label and score
  at::Tensor masks;                ///< float [n, height, width], confidence of each pixel, 0..1
  at::Tensor keypoints;            ///< float [n, k, 3]: x, y in pixels, visibility
  at::Tensor keypoint_scores;      ///< float [n, k]
};

/// Throws Error(kInput) that shows forward's signature unless forward takes List[Tensor] (and nothing else without a
/// default).
void require_picture_input(const torch::jit::Module& module);

/// Converts a List[Dict[str, Tensor]]: "boxes" [n, 4], "labels" [n], "scores" [n], perhaps "masks" [n, 1, h, w],
/// "keypoints" [n, k, 3] and "keypoints_scores" [n, k]; other keys are ignored. Throws Error(kInput) that names what
/// differs, also if there are not as many dicts as `images`.
std::vector<Detections> detections_from(const c10::IValue& output, std::size_t images);

/// Converts uint8 [H, W, 3] RGB, or float [3, H, W] on the CPU, to float [3, H, W] in 0..1 on `device`.
/// Throws Error(kInput) for another tensor.
at::Tensor to_image(const at::Tensor& pixels, c10::Device device);

}  // namespace hybrid_rt
