#pragma once

#include <ATen/core/Tensor.h>

#include <string>
#include <vector>

namespace hybrid_rt {

/// What a later segment of a fused engine returns: the engine computed it when the first segment ran.
/// That is right only if the segment's `inputs` are those outputs of the engine that `sources` names, handed on as they
/// were; each is checked to be that very tensor. Returns `count` outputs from `first` on. Throws Error(kInput).
std::vector<at::Tensor> handed_on(const std::vector<at::Tensor>& outputs, const std::vector<at::Tensor>& inputs,
                                  const std::string& segment, const std::vector<int64_t>& sources, int64_t first,
                                  int64_t count);

}  // namespace hybrid_rt
