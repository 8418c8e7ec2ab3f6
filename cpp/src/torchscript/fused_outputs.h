#pragma once

#include <ATen/core/Tensor.h>

#include <string>
#include <vector>

namespace hybrid_rt {

/// Returns the outputs of a later segment of a fused engine, which the engine computed when the first segment ran. They
/// are right only if the segment's `inputs` are the outputs of the engine that `sources` names, passed on unchanged.
/// Each input is checked to be the very same tensor. Returns `count` outputs from `first` on. Throws Error(kInput).
std::vector<at::Tensor> handed_on(const std::vector<at::Tensor>& outputs, const std::vector<at::Tensor>& inputs,
                                  const std::string& segment, const std::vector<int64_t>& sources, int64_t first,
                                  int64_t count);

}  // namespace hybrid_rt
