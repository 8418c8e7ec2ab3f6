#include "torchscript/fused_outputs.h"

#include "hybrid_rt/error.h"

namespace hybrid_rt {

std::vector<at::Tensor> handed_on(const std::vector<at::Tensor>& outputs, const std::vector<at::Tensor>& inputs,
                                  const std::string& segment, const std::vector<int64_t>& sources, int64_t first,
                                  int64_t count) {
  const auto refuse = [&](const std::string& expected, const std::string& got) {
    throw Error(ErrorKind::kInput, "engine", "segments '" + segment + "'", expected, got,
                "Convert again with fuse=False: each segment is then a separate engine.");
  };
  const auto size = static_cast<int64_t>(outputs.size());
  if (first < 0 || count < 0 || first > size - count) {
    refuse("an engine with " + std::to_string(first + count) + " outputs", std::to_string(size));
  }
  if (inputs.size() != sources.size()) {
    refuse(std::to_string(sources.size()) + " tensors passed on", std::to_string(inputs.size()));
  }
  for (size_t i = 0; i < inputs.size(); ++i) {
    const bool is_known = sources[i] >= 0 && sources[i] < size;
    if (!is_known || !inputs[i].is_same(outputs[static_cast<size_t>(sources[i])])) {
      refuse("the outputs of each to be passed on unchanged to the next",
             "another tensor as input " + std::to_string(i) + " of the later one");
    }
  }
  return {outputs.begin() + first, outputs.begin() + first + count};
}

}  // namespace hybrid_rt
