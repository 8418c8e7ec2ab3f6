#include "hybrid_rt/plugin/blob_map.h"

#include <utility>
#include "hybrid_rt/plugin/malformed.h"

namespace hybrid_rt {
namespace {}  // namespace

BlobMap::BlobMap(const ArtifactSpec& spec, std::vector<at::Tensor> bytes) : backend_(spec.backend) {
  if (bytes.size() != spec.blobs.size()) {
    throw malformed("bundle", "artifact of " + backend_, std::to_string(spec.blobs.size()) + " blobs",
                    std::to_string(bytes.size()));
  }
  for (size_t i = 0; i < bytes.size(); ++i) bytes_.emplace(spec.blobs[i].name, std::move(bytes[i]));
}

const at::Tensor& BlobMap::at(std::string_view name) const {
  const auto found = bytes_.find(name);
  if (found != bytes_.end()) return found->second;
  std::string names;
  for (const auto& [known, bytes] : bytes_) names += (names.empty() ? "'" : ", '") + known + "'";
  throw malformed("bundle", "artifact of " + backend_, "a blob named '" + std::string(name) + "'",
                  names.empty() ? "none" : names);
}

}  // namespace hybrid_rt
