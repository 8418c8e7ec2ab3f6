#include "hybrid_rt/plugin/shape_caching_engine.h"

#include <algorithm>

namespace hybrid_rt {
namespace {

/// Maximum number of input shapes to remember. A service with free image sizes sees many.
constexpr std::size_t kMaxShapes = 1024;

std::vector<std::vector<std::int64_t>> shapes_of(at::ArrayRef<at::Tensor> tensors) {
  std::vector<std::vector<std::int64_t>> shapes;
  for (const at::Tensor& tensor : tensors) shapes.push_back(tensor.sizes().vec());
  return shapes;
}

}  // namespace

ShapeCachingEngine::SharedMemory::SharedMemory(at::ArrayRef<at::Tensor> inputs) {
  for (const at::Tensor& input : inputs) {
    ranges_.emplace_back(static_cast<const char*>(input.const_data_ptr()), input.nbytes());
  }
}

bool ShapeCachingEngine::SharedMemory::overlaps(const void* data, std::size_t bytes) {
  const auto* const begin = static_cast<const char*>(data);
  const bool found = std::any_of(ranges_.begin(), ranges_.end(), [&](const auto& range) {
    return range.first < begin + bytes && begin < range.first + range.second;
  });
  ranges_.emplace_back(begin, bytes);
  return found;
}

std::vector<at::Tensor> ShapeCachingEngine::run(at::ArrayRef<at::Tensor> inputs) {
  std::vector<Shape> input_shapes = shapes_of(inputs);
  std::vector<Shape> output_shapes;
  {
    const std::lock_guard lock(mutex_);
    const auto known = output_shapes_.find(input_shapes);
    if (known != output_shapes_.end()) output_shapes = known->second;
  }
  if (!output_shapes.empty()) return run_into(output_shapes, inputs);
  CopiedOutputs copied = run_and_copy(inputs);
  if (!copied.must_copy) {
    const std::lock_guard lock(mutex_);
    if (output_shapes_.size() >= kMaxShapes) output_shapes_.clear();
    output_shapes_.emplace(std::move(input_shapes), shapes_of(copied.outputs));
  }
  return std::move(copied.outputs);
}

}  // namespace hybrid_rt
