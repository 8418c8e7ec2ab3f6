#include "hybrid_rt/specs.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <type_traits>

#include "common/dtypes.h"
#include "common/json_text.h"
#include "hybrid_rt/plugin/malformed.h"

namespace hybrid_rt {
namespace {

using nlohmann::json;

/// True for integers and for lists of integers.
template <typename T>
constexpr bool kIsOfIntegers = std::is_same_v<T, int64_t> || std::is_same_v<T, std::vector<int64_t>> ||
                               std::is_same_v<T, std::vector<std::vector<int64_t>>>;

template <typename T>
T field(const json& object, const char* name) {
  const auto found = object.is_object() ? object.find(name) : object.end();
  if (found == object.end()) throw malformed("bundle", "artifact spec", std::string("a field '") + name + "'", "none");
  try {
    if constexpr (kIsOfIntegers<T>) integers_in(*found);
    return found->get<T>();
  } catch (const json::exception&) {
    throw malformed("bundle", std::string("artifact spec, field '") + name + "'", "another type", shown(*found));
  }
}

TensorSpec tensor_from_json(const json& object) {
  TensorSpec tensor;
  tensor.name = field<std::string>(object, "name");
  const auto dtype = field<std::string>(object, "dtype");
  const auto known = dtype_from_name(dtype);
  if (!known)
    throw malformed("bundle", "artifact spec, tensor '" + tensor.name + "'", "a dtype of torch", "'" + dtype + "'");
  tensor.dtype = *known;
  tensor.min = field<std::vector<int64_t>>(object, "min");
  tensor.opt = field<std::vector<int64_t>>(object, "opt");
  tensor.max = field<std::vector<int64_t>>(object, "max");
  if (tensor.opt.size() != tensor.min.size() || tensor.max.size() != tensor.min.size()) {
    throw malformed("bundle", "artifact spec, tensor '" + tensor.name + "'", "min, opt and max of equal length",
                    shown(object));
  }
  return tensor;
}

BlobSpec blob_from_json(const json& object) {
  BlobSpec blob;
  blob.name = field<std::string>(object, "name");
  blob.size = field<int64_t>(object, "size");
  blob.sha256 = field<std::string>(object, "sha256");
  for (const auto& piece : field<std::vector<std::vector<int64_t>>>(object, "pieces")) {
    if (piece.size() != 3) {
      throw malformed("bundle", "artifact spec, blob '" + blob.name + "', pieces", "[index, offset, size] each",
                      shown(object));
    }
    blob.pieces.push_back({piece[0], piece[1], piece[2]});
  }
  return blob;
}

ArtifactSpec artifact_from_json(const json& object) {
  ArtifactSpec spec;
  spec.backend = field<std::string>(object, "backend");
  spec.precision = field<std::string>(object, "precision");
  spec.device = field<std::string>(object, "device");
  for (const auto& tensor : field<std::vector<json>>(object, "inputs")) spec.inputs.push_back(tensor_from_json(tensor));
  for (const auto& tensor : field<std::vector<json>>(object, "outputs")) {
    spec.outputs.push_back(tensor_from_json(tensor));
  }
  for (const auto& blob : field<std::vector<json>>(object, "blobs")) {
    spec.blobs.push_back(blob_from_json(blob));
  }
  spec.requirements = field<std::map<std::string, std::string>>(object, "requirements");
  spec.versions = field<std::map<std::string, std::string>>(object, "versions");
  return spec;
}

}  // namespace

std::vector<ArtifactSpec> ArtifactSpec::list_from_json(std::string_view text) {
  const json parsed = parse_json(text);
  if (!parsed.is_array() || parsed.empty()) {
    throw malformed("bundle", "artifact specs", "a JSON array of at least one", std::string(text.substr(0, 80)));
  }
  std::vector<ArtifactSpec> specs;
  for (const auto& object : parsed) specs.push_back(artifact_from_json(object));
  return specs;
}

std::vector<TableEntry> TableEntry::list_from_json(std::string_view text) {
  const json parsed = parse_json(text);
  if (!parsed.is_array()) throw malformed("bundle", "table of blobs", "a JSON array", std::string(text.substr(0, 80)));
  std::vector<TableEntry> entries;
  for (const auto& object : parsed) {
    entries.push_back({field<int64_t>(object, "size"), field<std::string>(object, "sha256")});
  }
  return entries;
}

const BlobSpec& ArtifactSpec::blob(std::string_view name) const {
  const auto found = std::find_if(blobs.begin(), blobs.end(), [&](const BlobSpec& blob) { return blob.name == name; });
  if (found == blobs.end()) {
    throw malformed("bundle", "artifact of " + backend, "a blob named '" + std::string(name) + "'", "none");
  }
  return *found;
}

std::string to_string(const TensorSpec& spec) {
  std::string text;
  for (size_t d = 0; d < spec.min.size(); ++d) {
    if (d) text += "x";
    text += std::to_string(spec.min[d]);
    if (spec.max[d] == TensorSpec::kUnbounded) {
      text += "..";
    } else if (spec.max[d] != spec.min[d]) {
      text += ".." + std::to_string(spec.max[d]);
    }
  }
  return (text.empty() ? "scalar" : text) + " " + name_of(spec.dtype);
}

}  // namespace hybrid_rt
