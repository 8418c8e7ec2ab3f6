#include "torchscript/images.h"

#include <algorithm>
#include <vector>

namespace hybrid_rt {

bool is_image(const at::Tensor& tensor) {
  const bool has_pixels = tensor.is_floating_point() || tensor.scalar_type() == at::kByte;
  return has_pixels && (tensor.dim() == 3 || tensor.dim() == 4);
}

c10::IValue map_images(const c10::IValue& argument, const TensorChange& change) {
  if (argument.isTensor()) {
    const at::Tensor& tensor = argument.toTensor();
    return tensor.defined() && is_image(tensor) ? c10::IValue(change(tensor)) : argument;
  }
  if (!argument.isList() && !argument.isTuple()) return argument;
  const std::vector<c10::IValue> elements = elements_of(argument);
  const bool are_images = std::all_of(elements.begin(), elements.end(), [](const c10::IValue& element) {
    return element.isTensor() && element.toTensor().defined() && element.toTensor().dim() == 3 &&
           is_image(element.toTensor());
  });
  return are_images ? map_tensors(argument, change) : argument;
}

}  // namespace hybrid_rt
