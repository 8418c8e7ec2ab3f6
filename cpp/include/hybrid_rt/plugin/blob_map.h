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
  /// `bytes` holds one tensor per entry of `spec.blobs`, in that order. Throws Error(kBundle) if the number differs.
  BlobMap(const ArtifactSpec& spec, std::vector<at::Tensor> bytes);

  /// Returns a contiguous uint8 CPU tensor whose digest was checked. A copy of the tensor keeps the bytes alive; do not
  /// write into them. Throws Error(kBundle) that lists the available names.
  const at::Tensor& at(std::string_view name) const;

  /// Returns true if there is a byte string of this name.
  bool has(std::string_view name) const { return bytes_.find(name) != bytes_.end(); }

 private:
  std::string backend_;  // for messages
  std::map<std::string, at::Tensor, std::less<>> bytes_;
};

}  // namespace hybrid_rt
