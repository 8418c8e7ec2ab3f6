#pragma once

#include <torch/script.h>

#include <cstdio>
#include <fstream>
#include <stdexcept>
#include <string>

/// Reads an image [channels, height, width] from a file of as many float32 values.
inline at::Tensor read_raw(const std::string& path, int64_t height, int64_t width, int64_t channels = 3) {
  at::Tensor image = torch::empty({channels, height, width});
  std::ifstream stream(path, std::ios::binary);
  if (!stream.read(static_cast<char*>(image.data_ptr()), static_cast<std::streamsize>(image.nbytes()))) {
    throw std::runtime_error("can't read " + path);
  }
  return image;
}

/// Prints the values of a tensor, each after a space.
inline void print_values(const at::Tensor& tensor) {
  const at::Tensor flat = tensor.to(at::kFloat).contiguous();
  for (int64_t i = 0; i < flat.numel(); ++i) std::printf(" %.9g", flat.data_ptr<float>()[i]);
}

/// Runs the detector on the images and prints one line per detection: label, score, x1, y1, x2, y2, then the area of
/// its mask, or x, y and score of each keypoint, if the detector returns these; an empty line between images.
inline void detect_and_print(torch::jit::Module& detector, const c10::List<at::Tensor>& images) {
  const auto results = detector.forward({images}).toList();
  for (size_t p = 0; p < results.size(); ++p) {
    if (p > 0) std::printf("\n");
    const auto detections = results.get(p).toGenericDict();
    const at::Tensor labels = detections.at("labels").toTensor();
    const at::Tensor scores = detections.at("scores").toTensor();
    const at::Tensor boxes = detections.at("boxes").toTensor();
    for (int64_t i = 0; i < labels.size(0); ++i) {
      std::printf("%lld", static_cast<long long>(labels[i].item<int64_t>()));
      print_values(scores[i]);
      print_values(boxes[i]);
      if (detections.contains("masks")) print_values(detections.at("masks").toTensor()[i].sum());
      if (detections.contains("keypoints")) {
        const at::Tensor points = detections.at("keypoints").toTensor()[i].narrow(1, 0, 2);
        const at::Tensor levels = detections.at("keypoints_scores").toTensor()[i].unsqueeze(1);
        print_values(at::cat({points, levels}, 1));
      }
      std::printf("\n");
    }
  }
}

/// Reads the images that the arguments name in groups of three: RAW HEIGHT WIDTH.
inline c10::List<at::Tensor> read_all(int count, char** arguments) {
  c10::List<at::Tensor> images;
  for (int i = 0; i + 2 < count; i += 3) {
    images.push_back(read_raw(arguments[i], std::stoll(arguments[i + 1]), std::stoll(arguments[i + 2])));
  }
  return images;
}
