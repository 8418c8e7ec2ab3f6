#include "verify/detection_groups.h"

#include <torch/types.h>

#include <algorithm>
#include <cstdint>
#include <map>
#include <optional>

namespace hybrid_rt {
namespace {

/// Maximum number of boxes. Matching takes time and memory proportional to its square.
constexpr int64_t kMostBoxes = 2000;

using Tensors = std::map<std::string, at::Tensor>;

Tensors tensors_of(const Leaves& leaves) {
  Tensors tensors;
  for (const auto& [name, leaf] : leaves) {
    if (!leaf.isTensor() || !leaf.toTensor().defined()) continue;
    const at::Tensor& tensor = leaf.toTensor();
    if (tensor.layout() == at::kStrided && !tensor.is_complex()) tensors[name] = tensor;
  }
  return tensors;
}

/// Returns the container of a leaf and the leaf's name in it, with the container itself as the group of its leaves.
std::pair<std::string, std::string> as_sibling(const std::string& path) {
  const size_t dot = path.rfind('.');
  return {path.substr(0, dot), path.substr(dot + 1)};
}

/// Returns the same for lists with one entry per image: "output.boxes.0" belongs to "output.*.0" as "boxes".
std::pair<std::string, std::string> as_entry(const std::string& path) {
  const auto [list, index] = as_sibling(path);
  if (list.find('.') == std::string::npos) return {};
  const auto [container, field] = as_sibling(list);
  return {container + ".*." + index, field};
}

/// Members of a possible group: the name in the container, and the leaf's name.
using Members = std::vector<std::pair<std::string, std::string>>;

/// Returns the leaf with a field's usual name, or else the only leaf that fits; nothing if none or several fit.
template <class Fits>
std::optional<std::string> leaf_for(const char* field, const Members& members, const Fits& fits) {
  std::vector<std::string> candidates;
  for (const auto& [name, leaf] : members) {
    if (!fits(leaf)) continue;
    if (name == field) return leaf;
    candidates.push_back(leaf);
  }
  if (candidates.size() != 1) return std::nullopt;
  return candidates.front();
}

bool is_whole(const at::Tensor& tensor) { return at::isIntegralType(tensor.scalar_type(), /*includeBool=*/false); }

/// Finds the fields of detections among the members of a container; nothing if they are not detections.
std::optional<DetectionGroup> group_of(const std::string& name, const Members& members, const Tensors& tensors) {
  const auto boxes = leaf_for("boxes", members, [&](const std::string& leaf) {
    const at::Tensor& tensor = tensors.at(leaf);
    return tensor.is_floating_point() && tensor.dim() == 2 && tensor.size(1) == 4;
  });
  if (!boxes) return std::nullopt;
  const int64_t count = tensors.at(*boxes).size(0);
  if (count > kMostBoxes) return std::nullopt;
  const auto is_row = [&](const std::string& leaf) {
    return tensors.at(leaf).dim() == 1 && tensors.at(leaf).size(0) == count;
  };
  const auto scores = leaf_for(
      "scores", members, [&](const std::string& leaf) { return is_row(leaf) && tensors.at(leaf).is_floating_point(); });
  if (!scores) return std::nullopt;
  const auto labels =
      leaf_for("labels", members, [&](const std::string& leaf) { return is_row(leaf) && is_whole(tensors.at(leaf)); });
  DetectionGroup group{name, {{*boxes, "boxes"}, {*scores, "scores"}}};
  if (labels) group.fields.emplace_back(*labels, "labels");
  for (const auto& [own, leaf] : members) {
    const bool is_known = leaf == *boxes || leaf == *scores || leaf == labels;
    const at::Tensor& tensor = tensors.at(leaf);
    if (!is_known && tensor.dim() >= 1 && tensor.size(0) == count) group.fields.emplace_back(leaf, own);
  }
  return group;
}

using Naming = std::pair<std::string, std::string> (*)(const std::string&);

std::map<std::string, Members> containers_of(const Tensors& tensors, Naming naming) {
  std::map<std::string, Members> containers;
  for (const auto& [leaf, tensor] : tensors) {
    const auto [container, own] = naming(leaf);
    if (!container.empty()) containers[container].emplace_back(own, leaf);
  }
  return containers;
}

/// Returns true if `other` has the fields of a group in `tensors`, with the same dtypes and, but for the number of
/// rows, shapes.
bool has_same_fields(const Tensors& tensors, const Tensors& other, const DetectionGroup& group) {
  const auto boxes = other.find(group.fields.front().first);
  if (boxes == other.end() || boxes->second.dim() == 0) return false;
  const int64_t count = boxes->second.size(0);
  return std::all_of(group.fields.begin(), group.fields.end(), [&](const auto& field) {
    const at::Tensor& wanted = tensors.at(field.first);
    const auto leaf = other.find(field.first);
    if (leaf == other.end() || leaf->second.scalar_type() != wanted.scalar_type()) return false;
    const at::IntArrayRef sizes = leaf->second.sizes();
    return sizes.size() == wanted.sizes().size() && sizes.front() == count && sizes.slice(1) == wanted.sizes().slice(1);
  });
}

}  // namespace

std::vector<DetectionGroup> detection_groups(const Leaves& expected, const Leaves& found) {
  const Tensors sides[] = {tensors_of(expected), tensors_of(found)};
  std::vector<DetectionGroup> groups;
  std::vector<std::string> taken;
  for (const Naming naming : {as_sibling, as_entry}) {
    for (const Tensors& side : sides) {  // without rows, a side may not show which leaves are the fields
      for (const auto& [container, members] : containers_of(side, naming)) {
        const std::optional<DetectionGroup> group = group_of(container, members, side);
        const auto is_taken = [&](const auto& field) {
          return std::find(taken.begin(), taken.end(), field.first) != taken.end();
        };
        if (!group || std::any_of(group->fields.begin(), group->fields.end(), is_taken)) continue;
        if (!has_same_fields(side, sides[0], *group) || !has_same_fields(side, sides[1], *group)) continue;
        for (const auto& field : group->fields) taken.push_back(field.first);
        groups.push_back(*group);
      }
    }
  }
  return groups;
}

DetectionFields fields_in(const Leaves& leaves, const DetectionGroup& group) {
  const std::map<std::string, c10::IValue> by_name(leaves.begin(), leaves.end());
  DetectionFields fields;
  for (const auto& [leaf, field] : group.fields) fields[field] = by_name.at(leaf).toTensor().detach().cpu();
  const at::Tensor boxes = fields.at("boxes");
  if (fields.count("labels") == 0) fields["labels"] = at::zeros({boxes.size(0)}, at::kLong);
  return fields;
}

}  // namespace hybrid_rt
