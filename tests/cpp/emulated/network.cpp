#include "network.h"

#include <nlohmann/json.hpp>
#include <stdexcept>

namespace emulated {
namespace {

using nlohmann::json;

constexpr size_t kAlignment = 256;  // of tensors in the scratch memory

size_t size_in_scratch(const Shape& shape) {
  const size_t bytes = static_cast<size_t>(elements_of(shape)) * sizeof(float);
  return (bytes + kAlignment - 1) / kAlignment * kAlignment;
}

Tensor tensor_of(const json& text) {
  return {text.at("name").get<std::string>(), text.value("dtype", "float32"), text.at("shape").get<Shape>(),
          text.value("on_host", false)};
}

Layer layer_of(const json& text) {
  Layer layer;
  layer.kind = text.at("kind").get<std::string>();
  layer.inputs = text.at("inputs").get<std::vector<std::string>>();
  layer.output = text.at("output").get<std::string>();
  layer.weights = text.value("weights", std::vector<float>());
  layer.bias = text.value("bias", std::vector<float>());
  layer.channels = text.value("channels", int64_t{0});
  layer.stride = text.value("stride", int64_t{1});
  return layer;
}

Shape result_of(const Layer& layer, Shape shape) {
  if (layer.kind == "conv") {
    return {shape[0], layer.channels, (shape[2] - 1) / layer.stride + 1, (shape[3] - 1) / layer.stride + 1};
  }
  if (layer.kind == "upsample") return {shape[0], shape[1], 2 * shape[2], 2 * shape[3]};
  if (layer.kind == "mean") return {shape[0], shape[1]};
  return shape;
}

void convolve(const Layer& layer, const Shape& in, const Shape& out, const float* x, float* y) {
  for (int64_t n = 0; n < out[0]; ++n) {
    for (int64_t c = 0; c < out[1]; ++c) {
      for (int64_t i = 0; i < out[2]; ++i) {
        for (int64_t j = 0; j < out[3]; ++j) {
          float sum = layer.bias[static_cast<size_t>(c)];
          for (int64_t k = 0; k < in[1]; ++k) {
            for (int64_t a = 0; a < 9; ++a) {
              const int64_t row = i * layer.stride + a / 3 - 1;
              const int64_t column = j * layer.stride + a % 3 - 1;
              if (row < 0 || row >= in[2] || column < 0 || column >= in[3]) continue;
              sum += layer.weights[static_cast<size_t>((c * in[1] + k) * 9 + a)] *
                     x[((n * in[1] + k) * in[2] + row) * in[3] + column];
            }
          }
          *y++ = sum;
        }
      }
    }
  }
}

void upsample(const Shape& out, const float* x, float* y) {
  for (int64_t plane = 0; plane < out[0] * out[1]; ++plane) {
    for (int64_t i = 0; i < out[2]; ++i) {
      for (int64_t j = 0; j < out[3]; ++j) *y++ = x[(plane * (out[2] / 2) + i / 2) * (out[3] / 2) + j / 2];
    }
  }
}

void average(const Shape& in, const float* x, float* y) {
  const int64_t size = in[2] * in[3];
  for (int64_t plane = 0; plane < in[0] * in[1]; ++plane) {
    double sum = 0;
    for (int64_t i = 0; i < size; ++i) sum += x[plane * size + i];
    y[plane] = static_cast<float>(sum / static_cast<double>(size));
  }
}

}  // namespace

int64_t elements_of(const Shape& shape) {
  int64_t elements = 1;
  for (const int64_t size : shape) elements *= size;
  return elements;
}

Network Network::parse(std::string_view text) {
  const json parsed = json::parse(text);
  Network network;
  for (const json& each : parsed.at("inputs")) network.inputs.push_back(tensor_of(each));
  for (const json& each : parsed.at("outputs")) network.outputs.push_back(tensor_of(each));
  for (const json& each : parsed.at("layers")) network.layers.push_back(layer_of(each));
  for (const json& each : parsed.at("profiles")) {
    auto& profile = network.profiles.emplace_back();
    for (const auto& [name, range] : each.items()) {
      profile[name] = {range.at("min").get<Shape>(), range.at("max").get<Shape>()};
    }
  }
  network.version = parsed.at("version").get<std::string>();
  network.has_host_code = parsed.value("host_code", false);
  return network;
}

const Tensor* Network::find(std::string_view name) const {
  for (const auto* tensors : {&inputs, &outputs}) {
    for (const Tensor& tensor : *tensors) {
      if (tensor.name == name) return &tensor;
    }
  }
  return nullptr;
}

std::map<std::string, Shape> Network::infer(const std::map<std::string, Shape>& given) const {
  std::map<std::string, Shape> shapes = given;
  for (const Layer& layer : layers) shapes[layer.output] = result_of(layer, shapes.at(layer.inputs.front()));
  return shapes;
}

size_t Network::scratch_size(const std::map<std::string, Shape>& shapes) const {
  size_t bytes = 0;
  for (const Layer& layer : layers) {
    if (is_between(layer.output)) bytes += size_in_scratch(shapes.at(layer.output));
  }
  return bytes;
}

void Network::run(const std::map<std::string, Shape>& shapes, std::map<std::string, float*> places,
                  float* scratch) const {
  for (const Layer& layer : layers) {
    if (!is_between(layer.output)) continue;
    places[layer.output] = scratch;
    scratch += size_in_scratch(shapes.at(layer.output)) / sizeof(float);
  }
  for (const Layer& layer : layers) {
    const Shape& in = shapes.at(layer.inputs.front());
    const Shape& out = shapes.at(layer.output);
    const float* const x = places.at(layer.inputs.front());
    float* const y = places.at(layer.output);
    if (layer.kind == "conv") {
      convolve(layer, in, out, x, y);
    } else if (layer.kind == "upsample") {
      upsample(out, x, y);
    } else if (layer.kind == "mean") {
      average(in, x, y);
    } else if (layer.kind == "scale") {
      for (int64_t i = 0; i < elements_of(out); ++i) y[i] = layer.weights.at(0) * x[i] + layer.bias.at(0);
    } else if (layer.kind == "add") {
      const float* const other = places.at(layer.inputs.at(1));
      for (int64_t i = 0; i < elements_of(out); ++i) y[i] = x[i] + other[i];
    } else {
      throw std::runtime_error("no layer of kind " + layer.kind);
    }
  }
}

}  // namespace emulated
