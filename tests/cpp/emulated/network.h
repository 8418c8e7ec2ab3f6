#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

// The small network that the stand-in for TensorRT runs. It is written in JSON and replaces the vendor's plan.

namespace emulated {

using Shape = std::vector<int64_t>;

int64_t elements_of(const Shape& shape);

struct Tensor {
  std::string name;
  std::string dtype;  ///< by torch's name; only float32 is computed
  Shape shape;        ///< -1: known at run time
  bool is_on_host = false;
};

struct Range {
  Shape min;
  Shape max;
};

struct Layer {
  std::string kind;  ///< "conv" (3x3, padded by 1), "scale", "add", "upsample" (nearest, 2x), "mean" (of each plane)
  std::vector<std::string> inputs;
  std::string output;
  std::vector<float> weights;
  std::vector<float> bias;
  int64_t channels = 0;  ///< channels of the result of "conv"
  int64_t stride = 1;
};

class Network {
 public:
  /// Parses a network. Throws std::exception with the defect.
  static Network parse(std::string_view text);

  std::vector<Tensor> inputs;
  std::vector<Tensor> outputs;
  std::vector<std::map<std::string, Range>> profiles;
  std::vector<Layer> layers;
  std::string version;         ///< version of the library that it is for
  bool has_host_code = false;  ///< like version-compatible plans

  const Tensor* find(std::string_view name) const;
  /// Returns the shapes of all tensors, including those between the layers, from those of the inputs.
  std::map<std::string, Shape> infer(const std::map<std::string, Shape>& given) const;
  /// Returns the bytes for tensors between the layers.
  size_t scratch_size(const std::map<std::string, Shape>& shapes) const;
  void run(const std::map<std::string, Shape>& shapes, std::map<std::string, float*> places, float* scratch) const;

 private:
  bool is_between(const std::string& name) const { return find(name) == nullptr; }
};

}  // namespace emulated
