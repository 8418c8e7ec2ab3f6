#pragma once

#include <ATen/core/Tensor.h>

#include <functional>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "hybrid_rt/specs.h"

namespace hybrid_rt {

/// The bytes of one artifact by name. Copies share the bytes.
class BlobMap {
 public:
  /// `bytes`: one tensor per entry of `spec.blobs`, in that order. Throws Error(kBundle) for another number of them.
  BlobMap(const ArtifactSpec& spec, std::vector<at::Tensor> bytes);

  /// A contiguous uint8 CPU tensor whose digest was checked; who keeps the tensor keeps the bytes alive, and must not
  /// write into them. Throws Error(kBundle) that lists the names that there are.
  const at::Tensor& at(std::string_view name) const;

 private:
  std::string backend_;  // for messages
  std::map<std::string, at::Tensor, std::less<>> bytes_;
};

}  // namespace hybrid_rt
