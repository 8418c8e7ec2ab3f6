#include "verify/groups.h"

#include <torch/types.h>

#include <algorithm>
#include <cstdint>
#include <optional>
#include <set>
#include <utility>
#include <vector>

namespace hybrid_rt {
namespace {

/// Maximum number of rows. Finding partners takes time proportional to its square.
constexpr int64_t kMostRows = 2000;
/// Columns of a tensor that holds all fields of detections: a box, a score, a label.
constexpr int64_t kColumns = 6;
/// Maximum number of columns of rows with other fields, such as landmarks, or a score per class.
constexpr int64_t kMostColumns = 256;

/// Names that tell the scores from other numbers of the boxes.
const std::set<std::string> kScoreNames{"scores", "score", "confidences", "confidence", "conf"};

bool is_real(const at::Tensor& tensor) { return is_usable(tensor) && tensor.is_floating_point(); }

/// Returns the sizes [n] or [b, n] that tensors with one row per score begin with, if they can be those of scores.
std::optional<std::vector<int64_t>> row_sizes(const at::Tensor& tensor, int64_t further) {
  const int64_t count = tensor.dim() - further;
  if (!is_real(tensor) || count < 1 || count > 2 || tensor.numel() == 0) return std::nullopt;
  const std::vector<int64_t> sizes(tensor.sizes().begin(), tensor.sizes().begin() + count);
  if (sizes.back() < 2 || sizes.back() > kMostRows) return std::nullopt;
  return sizes;
}

/// Returns the sizes [n] or [b, n] of scores, which may have a further axis of size 1.
std::optional<std::vector<int64_t>> score_sizes(const at::Tensor& tensor) {
  const bool has_column = tensor.dim() > 1 && tensor.size(-1) == 1;
  return row_sizes(tensor, has_column ? 1 : 0);
}

/// Returns true for scores [batch, rows, 1]: they descend, and some are not whole as labels are.
bool can_be_scores(const at::Tensor& rows) { return descend(rows.squeeze(2)) && !are_whole(rows, 2).item<bool>(); }

/// Returns true for rows that have a score in one of their columns.
bool has_columns(const at::Tensor& tensor) {
  const auto sizes = row_sizes(tensor, 1);
  if (!sizes || tensor.size(-1) <= kBoxColumns || tensor.size(-1) > kMostColumns) return false;
  const at::Tensor rows = as_rows(tensor, *sizes);
  return score_columns(rows, rows).has_value();
}

bool is_within_one(const at::Tensor& values) { return at::logical_and(values >= 0, values <= 1).all().item<bool>(); }

bool begins_with(const at::Tensor& tensor, const std::vector<int64_t>& sizes) {
  return tensor.dim() >= static_cast<int64_t>(sizes.size()) &&
         std::equal(sizes.begin(), sizes.end(), tensor.sizes().begin());
}

/// Returns the container of a leaf and its name there.
std::pair<std::string, std::string> as_sibling(const std::string& name) {
  const size_t dot = name.rfind('.');
  return {name.substr(0, dot), name.substr(dot + 1)};
}

/// Returns the same for parallel lists with one entry per image: "output.boxes.0" is "boxes" of "output.*.0".
std::pair<std::string, std::string> as_entry(const std::string& name) {
  const auto [list, index] = as_sibling(name);
  const bool is_index = std::all_of(index.begin(), index.end(), [](char c) { return c >= '0' && c <= '9'; });
  if (!is_index || list.find('.') == std::string::npos) return {};
  const auto [container, field] = as_sibling(list);
  return {container + ".*." + index, field};
}

/// Members of a container: the name there, and the leaf's name.
using Members = std::vector<std::pair<std::string, std::string>>;

bool has_boxes(const at::Tensor& tensor, const std::vector<int64_t>& sizes) {
  return is_real(tensor) && begins_with(tensor, sizes) && tensor.size(-1) == kBoxColumns &&
         tensor.dim() == static_cast<int64_t>(sizes.size()) + 1;
}

/// Returns the detections that have their scores in `scores`: all members with as many rows.
Group group_with(const std::string& scores, bool has_columns, const Members& members, const NamedTensors& tensors) {
  const at::Tensor& tensor = tensors.at(scores);
  Group group{{}, scores, has_columns, *(has_columns ? row_sizes(tensor, 1) : score_sizes(tensor))};
  for (const auto& [own, leaf] : members) {
    if (begins_with(tensors.at(leaf), group.sizes)) group.names.push_back(leaf);
  }
  return group;
}

/// Finds detections among the members of a container: the only scores, boxes, and all others with as many rows.
std::optional<Group> group_of(const Members& members, const NamedTensors& tensors) {
  std::vector<std::string> candidates;
  std::vector<std::string> by_name;
  for (const auto& [own, leaf] : members) {
    const auto sizes = score_sizes(tensors.at(leaf));
    if (!sizes || !can_be_scores(as_rows(tensors.at(leaf), *sizes))) continue;
    const bool are_scores = std::any_of(members.begin(), members.end(), [&](const auto& member) {
      return has_boxes(tensors.at(member.second), *sizes);
    });
    if (!are_scores) continue;
    candidates.push_back(leaf);
    if (kScoreNames.count(own) != 0) by_name.push_back(leaf);
  }
  if (candidates.size() != 1) candidates = by_name;
  if (candidates.size() != 1) return std::nullopt;
  return group_with(candidates.front(), false, members, tensors);
}

/// Finds rows with all fields in the columns of one tensor, and the other members with as many rows, such as masks.
std::vector<Group> groups_with_columns(const Members& members, const NamedTensors& tensors) {
  std::vector<Group> groups;
  for (const auto& [own, leaf] : members) {
    if (!has_columns(tensors.at(leaf))) continue;
    Group group = group_with(leaf, true, members, tensors);
    const auto rivals = std::count_if(group.names.begin(), group.names.end(),
                                      [&](const std::string& name) { return has_columns(tensors.at(name)); });
    if (rivals > 1) group.names = {leaf};
    groups.push_back(std::move(group));
  }
  return groups;
}

}  // namespace

bool is_usable(const at::Tensor& tensor) {
  return tensor.layout() == at::kStrided && !tensor.is_complex() && !tensor.is_quantized() && tensor.dim() > 0;
}

at::Tensor as_rows(const at::Tensor& tensor, const std::vector<int64_t>& sizes) {
  const int64_t batch = sizes.size() == 2 ? sizes.front() : 1;
  return tensor.detach().cpu().to(at::kDouble).reshape({batch, sizes.back(), -1});
}

bool descend(const at::Tensor& scores) {
  const at::Tensor before = scores.slice(1, 0, -1);
  const at::Tensor after = scores.slice(1, 1);
  return (before >= after).all().item<bool>() && (before > after).any(1).all().item<bool>();
}

at::Tensor are_whole(const at::Tensor& tensor, int64_t axis) {
  const at::Tensor flat = tensor.movedim(axis, 0).reshape({tensor.size(axis), -1});
  return (flat == flat.round()).all(1);
}

bool holds_detections(const at::Tensor& tensor) {
  if (!is_real(tensor) || tensor.dim() < 2 || tensor.dim() > 3 || tensor.size(-1) != kColumns) return false;
  const at::Tensor score = tensor.select(-1, kBoxColumns);
  const at::Tensor label = tensor.select(-1, kBoxColumns + 1);
  return at::logical_and(at::logical_and(score >= 0, score <= 1), label == label.round()).all().item<bool>();
}

at::Tensor ScoreColumns::of(const at::Tensor& rows) const {
  const at::Tensor scores = rows.narrow(2, first, 1);
  if (!is_product) return scores;
  // Rounded as the detector rounded it before it sorted.
  return (scores.to(at::kFloat) * rows.narrow(2, first + 1, 1).to(at::kFloat)).to(at::kDouble);
}

std::optional<ScoreColumns> score_columns(const at::Tensor& expected, const at::Tensor& found) {
  if (holds_detections(expected) && holds_detections(found)) return ScoreColumns{kBoxColumns, false};
  std::vector<int64_t> within;
  for (int64_t i = 0; i < expected.size(2); ++i) {
    if (is_within_one(expected.select(2, i)) && is_within_one(found.select(2, i))) within.push_back(i);
  }
  for (const bool is_product : {false, true}) {
    std::vector<ScoreColumns> candidates;
    for (const int64_t i : within) {
      if (is_product && std::count(within.begin(), within.end(), i + 1) == 0) continue;
      const ScoreColumns columns{i, is_product};
      if (!descend(columns.of(expected).squeeze(2)) || !descend(columns.of(found).squeeze(2))) continue;
      candidates.push_back(columns);
    }
    if (candidates.size() > 1) return std::nullopt;
    if (!candidates.empty()) return candidates.front();
  }
  return std::nullopt;
}

std::vector<Group> groups_in(const NamedTensors& tensors) {
  std::vector<Group> groups;
  std::set<std::string> taken;
  const auto take = [&](Group group) {
    taken.insert(group.names.begin(), group.names.end());
    groups.push_back(std::move(group));
  };
  for (const auto naming : {as_sibling, as_entry}) {
    std::map<std::string, Members> containers;
    for (const auto& [leaf, tensor] : tensors) {
      const auto [container, own] = naming(leaf);
      if (!container.empty() && taken.count(leaf) == 0) containers[container].emplace_back(own, leaf);
    }
    for (const auto& [container, members] : containers) {
      if (auto group = group_of(members, tensors)) take(std::move(*group));
    }
  }
  std::map<std::string, Members> containers;
  for (const auto& [leaf, tensor] : tensors) {
    if (taken.count(leaf) == 0) containers[as_sibling(leaf).first].emplace_back(leaf, leaf);
  }
  for (const auto& [container, members] : containers) {
    for (Group& group : groups_with_columns(members, tensors)) take(std::move(group));
  }
  const auto is_incomplete = [&](const Group& group) {
    return std::any_of(tensors.begin(), tensors.end(), [&](const auto& leaf) {
      return taken.count(leaf.first) == 0 && begins_with(leaf.second, group.sizes);
    });
  };
  groups.erase(std::remove_if(groups.begin(), groups.end(), is_incomplete), groups.end());
  return groups;
}

}  // namespace hybrid_rt
