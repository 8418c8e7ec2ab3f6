#pragma once

#include <ATen/core/ivalue.h>

#include "torchscript/value_tree.h"

namespace hybrid_rt {

/// Returns whether a tensor is an image [C, H, W] or a batch of images [N, C, H, W]: floats or uint8.
bool is_image(const at::Tensor& tensor);

/// Returns an argument of forward with its images changed. Images are the argument itself, or make up a list or tuple
/// of nothing but [C, H, W]; whatever else an argument holds stays. Python knows more than the shapes: it finds out
/// what is an image when it converts (hybrid_rt/capture/find_images.py).
c10::IValue map_images(const c10::IValue& argument, const TensorChange& change);

}  // namespace hybrid_rt
