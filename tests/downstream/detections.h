#pragma once

#include <torch/script.h>

#include <cstdio>
#include <fstream>
#include <stdexcept>
#include <string>

/// A picture [3, height, width] from a file of as many float32.
inline at::Tensor read_raw(const std::string& path, int64_t height, int64_t width) {
  at::Tensor picture = torch::empty({3, height, width});
  std::ifstream stream(path, std::ios::binary);
  if (!stream.read(static_cast<char*>(picture.data_ptr()), static_cast<std::streamsize>(picture.nbytes()))) {
    throw std::runtime_error("can't read " + path);
  }
  return picture;
}

/// Runs the detector on the pictures and prints a line a detection: label, score, x1, y1, x2, y2; an empty line
/// between pictures.
inline void detect_and_print(torch::jit::Module& detector, const c10::List<at::Tensor>& pictures) {
  const auto results = detector.forward({pictures}).toList();
  for (size_t p = 0; p < results.size(); ++p) {
    if (p > 0) std::printf("\n");
    const auto detections = results.get(p).toGenericDict();
    const at::Tensor labels = detections.at("labels").toTensor();
    const at::Tensor scores = detections.at("scores").toTensor();
    const at::Tensor boxes = detections.at("boxes").toTensor();
    for (int64_t i = 0; i < labels.size(0); ++i) {
      std::printf("%lld %.9g", static_cast<long long>(labels[i].item<int64_t>()), scores[i].item<float>());
      for (int64_t k = 0; k < 4; ++k) std::printf(" %.9g", boxes[i][k].item<float>());
      std::printf("\n");
    }
  }
}

/// The pictures named by RAW HEIGHT WIDTH three by three.
inline c10::List<at::Tensor> read_all(int count, char** arguments) {
  c10::List<at::Tensor> pictures;
  for (int i = 0; i + 2 < count; i += 3) {
    pictures.push_back(read_raw(arguments[i], std::stoll(arguments[i + 1]), std::stoll(arguments[i + 2])));
  }
  return pictures;
}
