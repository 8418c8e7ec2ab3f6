#include "torchscript/images.h"

#include <ATen/core/Dict.h>
#include <ATen/core/List.h>
#include <ATen/core/jit_type.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/upsample_bilinear2d.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <string>

#include "common/dtypes.h"
#include "torchscript/value_tree.h"

namespace hybrid_rt {
namespace {

/// Recorded images whose path leads through a value.
using Leading = std::vector<const ImageInput*>;

using ImageChange = std::function<at::Tensor(const at::Tensor& tensor, const ImageInput& input)>;

/// Returns those whose path continues with a step.
Leading through(const Leading& images, size_t depth, const std::string& step, bool is_list) {
  Leading found;
  for (const ImageInput* image : images) {
    if (image->place.size() <= depth) continue;
    const std::optional<std::string>& next = image->place[depth];
    if (next ? *next == step : is_list) found.push_back(image);
  }
  return found;
}

/// Returns a value with its images changed. `images` are in it, and `depth` is the number of steps of their paths so
/// far.
c10::IValue changed(const c10::IValue& value, const Leading& images, size_t depth, const ImageChange& change) {
  if (images.empty()) return value;
  const auto inner = [&](const c10::IValue& child, const std::string& step) {
    return changed(child, through(images, depth, step, value.isList()), depth + 1, change);
  };
  if (value.isTensor()) {
    const at::Tensor& tensor = value.toTensor();
    const auto here = std::find_if(images.begin(), images.end(),
                                   [depth](const ImageInput* image) { return image->place.size() == depth; });
    if (here == images.end() || !tensor.defined() || tensor.numel() == 0) return value;
    return tensor.dim() == static_cast<int64_t>((*here)->layout.size()) ? c10::IValue(change(tensor, **here)) : value;
  }
  if (value.isGenericDict()) {
    const c10::impl::GenericDict old = value.toGenericDict();
    c10::impl::GenericDict dict(old.keyType(), old.valueType());
    for (const auto& entry : old) {
      const bool is_text = entry.key().isString();
      const std::string key = is_text               ? entry.key().toStringRef()
                              : entry.key().isInt() ? std::to_string(entry.key().toInt())
                                                    : "";
      dict.insert(entry.key(), inner(entry.value(), key));
    }
    return dict;
  }
  if (!value.isList() && !value.isTuple()) return value;
  std::vector<c10::IValue> elements;
  for (const c10::IValue& element : elements_of(value)) {
    elements.push_back(inner(element, std::to_string(elements.size())));
  }
  if (value.isTuple()) return c10::ivalue::Tuple::create(std::move(elements));
  c10::impl::GenericList list(value.toList().elementType());
  for (c10::IValue& element : elements) list.push_back(std::move(element));
  return list;
}

std::vector<c10::IValue> changed(const std::vector<c10::IValue>& arguments, const std::vector<ImageInput>& images,
                                 const std::function<ImageChange(size_t argument)>& change_in) {
  Leading all;
  for (const ImageInput& image : images) all.push_back(&image);
  std::vector<c10::IValue> result;
  for (size_t i = 0; i < arguments.size(); ++i) {
    result.push_back(changed(arguments[i], through(all, 0, std::to_string(i), false), 1, change_in(i)));
  }
  return result;
}

ImageSize size_of(const at::Tensor& tensor, const ImageInput& input) {
  return {tensor.size(static_cast<int64_t>(input.axis('H'))), tensor.size(static_cast<int64_t>(input.axis('W')))};
}

/// Returns the rows or columns of a resized mask, so that it gets no new values.
at::Tensor nearest(int64_t size, int64_t old, c10::Device device) {
  return at::arange(size, at::TensorOptions(at::kLong).device(device)).mul(old).floor_divide(size);
}

at::Tensor resized(const at::Tensor& tensor, const ImageInput& input, const ImageSize& size) {
  const auto [height, width] = size;
  const auto rows = static_cast<int64_t>(input.axis('H'));
  const auto columns = static_cast<int64_t>(input.axis('W'));
  if (input.is_mask) {
    return tensor.index_select(rows, nearest(height, tensor.size(rows), tensor.device()))
        .index_select(columns, nearest(width, tensor.size(columns), tensor.device()));
  }
  const at::Tensor last = tensor.movedim({rows, columns}, {-2, -1});
  const at::Tensor batch = last.reshape({1, -1, last.size(-2), last.size(-1)});
  const at::Tensor pixels = batch.is_floating_point() ? batch : batch.to(at::kFloat);  // a GPU resizes only floats
  std::vector<int64_t> shape = last.sizes().vec();
  shape[shape.size() - 2] = height;
  shape[shape.size() - 1] = width;
  return at::upsample_bilinear2d(pixels, {height, width}, /*align_corners=*/false)
      .to(tensor.scalar_type())
      .reshape(shape)
      .movedim({-2, -1}, {rows, columns})
      .contiguous();
}

int64_t in_proportion(int64_t side, int64_t wanted, int64_t reference) {
  return std::max<int64_t>(
      1, std::llround(static_cast<double>(side) * static_cast<double>(wanted) / static_cast<double>(reference)));
}

bool has_image_shape(const c10::IValue& value, int64_t dimensions) {
  if (!value.isTensor() || !value.toTensor().defined()) return false;
  const at::Tensor& tensor = value.toTensor();
  return (tensor.is_floating_point() || tensor.scalar_type() == at::kByte) && tensor.dim() == dimensions;
}

}  // namespace

std::vector<c10::IValue> resize_images(const std::vector<c10::IValue>& arguments, const std::vector<ImageInput>& images,
                                       const ImageSize& size) {
  std::optional<std::pair<size_t, ImageSize>> first;
  changed(arguments, images, [&](size_t i) -> ImageChange {
    return [&first, i](const at::Tensor& tensor, const ImageInput& input) {
      if (!first && !input.is_mask) first = {i, size_of(tensor, input)};
      return tensor;
    };
  });
  if (!first) return arguments;
  const auto& [reference_argument, reference] = *first;
  return changed(arguments, images, [&](size_t i) -> ImageChange {
    return [&, i](const at::Tensor& tensor, const ImageInput& input) {
      const auto [height, width] = size_of(tensor, input);
      const bool is_exact = input.is_mask || i == reference_argument;
      return resized(tensor, input,
                     is_exact ? size
                              : ImageSize{in_proportion(height, size.first, reference.first),
                                          in_proportion(width, size.second, reference.second)});
    };
  });
}

std::optional<std::vector<c10::IValue>> black_images(const std::vector<c10::Argument>& schema,
                                                     const std::vector<ImageInput>& images, c10::Device device) {
  std::vector<c10::IValue> arguments;
  for (size_t i = 1; i < schema.size(); ++i) {
    const bool is_list = *schema[i].type() == *c10::ListType::ofTensors();
    std::vector<std::optional<std::string>> place{std::to_string(i - 1)};
    if (is_list) place.emplace_back();
    const auto here =
        std::find_if(images.begin(), images.end(), [&](const ImageInput& image) { return image.place == place; });
    const bool is_tensor = schema[i].type()->kind() == c10::TypeKind::TensorType;
    const auto dtype = here == images.end() ? std::nullopt : dtype_from_name(here->dtype);
    if (!dtype || (!is_list && !is_tensor)) return std::nullopt;
    const at::Tensor image = at::zeros(here->shape, at::TensorOptions(device).dtype(*dtype));
    arguments.push_back(is_list ? c10::IValue(c10::List<at::Tensor>({image})) : c10::IValue(image));
  }
  if (arguments.empty()) return std::nullopt;
  return arguments;
}

std::vector<ImageInput> guessed_images(const std::vector<c10::IValue>& arguments) {
  std::vector<ImageInput> found;
  for (size_t i = 0; i < arguments.size(); ++i) {
    const c10::IValue& value = arguments[i];
    const std::string argument = std::to_string(i);
    if (has_image_shape(value, 3) || has_image_shape(value, 4)) {
      const bool is_batch = value.toTensor().dim() == 4;
      found.push_back({.place = {argument}, .layout = is_batch ? "NCHW" : "CHW", .shape = {}, .dtype = ""});
    } else if (value.isList() || value.isTuple()) {
      const std::vector<c10::IValue> elements = elements_of(value);
      const auto is_image = [](const c10::IValue& element) { return has_image_shape(element, 3); };
      if (!std::all_of(elements.begin(), elements.end(), is_image)) continue;
      for (size_t k = 0; k < elements.size(); ++k) {
        found.push_back({.place = {argument, std::to_string(k)}, .layout = "CHW", .shape = {}, .dtype = ""});
      }
    }
  }
  return found;
}

}  // namespace hybrid_rt
