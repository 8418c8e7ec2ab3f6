#include "verify/near_ties.h"

#include <torch/types.h>

#include <algorithm>
#include <cmath>
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
constexpr int64_t kBoxColumns = 4;
constexpr int64_t kColumns = 6;

/// Names that tell the scores from other numbers of the boxes.
const std::set<std::string> kScoreNames{"scores", "score", "confidences", "confidence", "conf"};

/// Detections: the names of their tensors, and the one that has the scores, alone or beside box and label.
struct Group {
  std::vector<std::string> names;
  std::string scores;
  bool has_columns = false;
};

bool is_usable(const at::Tensor& tensor) {
  return tensor.layout() == at::kStrided && !tensor.is_complex() && !tensor.is_quantized() && tensor.dim() > 0;
}

bool is_real(const at::Tensor& tensor) { return is_usable(tensor) && tensor.is_floating_point(); }

/// Returns the sizes [n] or [b, n] that tensors with one row per score begin with, if they can be those of scores.
std::optional<std::vector<int64_t>> row_sizes(const at::Tensor& tensor, int64_t further) {
  const int64_t count = tensor.dim() - further;
  if (!is_real(tensor) || count < 1 || count > 2 || tensor.numel() == 0) return std::nullopt;
  const std::vector<int64_t> sizes(tensor.sizes().begin(), tensor.sizes().begin() + count);
  if (sizes.back() < 2 || sizes.back() > kMostRows) return std::nullopt;
  return sizes;
}

bool begins_with(const at::Tensor& tensor, const std::vector<int64_t>& sizes) {
  return tensor.dim() >= static_cast<int64_t>(sizes.size()) &&
         std::equal(sizes.begin(), sizes.end(), tensor.sizes().begin());
}

/// Returns values on the CPU as [batch, rows, values].
at::Tensor as_rows(const at::Tensor& tensor, const std::vector<int64_t>& sizes) {
  const int64_t batch = sizes.size() == 2 ? sizes.front() : 1;
  return tensor.detach().cpu().to(at::kDouble).reshape({batch, sizes.back(), -1});
}

/// Returns true if scores [batch, rows] descend in each image and are not all equal there, so that they decide the
/// order.
bool descend(const at::Tensor& scores) {
  const at::Tensor before = scores.slice(1, 0, -1);
  const at::Tensor after = scores.slice(1, 1);
  return (before >= after).all().item<bool>() && (before > after).any(1).all().item<bool>();
}

/// One tensor of a group, or some columns of it, as [batch, rows, values].
struct Part {
  at::Tensor expected;
  at::Tensor found;
  double allowed;  // largest difference of two values
};

Part part_of(const at::Tensor& expected, const at::Tensor& found, bool is_whole, double limit) {
  if (is_whole) return {expected, found, 0};
  const double scale = expected.abs().nan_to_num(0, 0, 0).max().item<double>();
  return {expected, found, limit * (scale != 0 ? scale : 1)};
}

/// Returns true where the values of two sides, of the same shape but for broadcasting, agree in all of the last axis.
at::Tensor agree(const Part& part, const at::Tensor& expected, const at::Tensor& found) {
  const at::Tensor same = at::logical_or(expected == found, at::logical_and(expected.isnan(), found.isnan()));
  return at::logical_or(same, (expected - found).abs() <= part.allowed).all(-1);
}

/// Finds which found row equals each expected one of an image, one to one, by augmenting paths. Rows stay at their
/// places if they are equal there, unless another row needs the place.
class Partners {
 public:
  Partners(const std::vector<Part>& parts, int64_t image)
      : parts_(parts),
        image_(image),
        count_(parts.front().expected.size(1)),
        allowed_(static_cast<size_t>(count_)),
        owner_(static_cast<size_t>(count_), -1) {}

  /// Returns the index of the found row for each expected row; nothing if a row has no partner.
  std::optional<std::vector<int64_t>> find() {
    at::Tensor in_place = torch::ones({count_}, at::kBool);
    for (const Part& part : parts_) {
      in_place = at::logical_and(in_place, agree(part, part.expected[image_], part.found[image_]));
    }
    for (int64_t i = 0; i < count_; ++i) {
      if (in_place[i].item<bool>()) owner_[static_cast<size_t>(i)] = i;
    }
    for (int64_t i = 0; i < count_; ++i) {
      if (owner_[static_cast<size_t>(i)] == i) continue;
      std::vector<bool> visited(static_cast<size_t>(count_));
      if (!in_place[i].item<bool>() && !place(i, visited)) return std::nullopt;
    }
    std::vector<int64_t> partners(static_cast<size_t>(count_));
    for (int64_t j = 0; j < count_; ++j) partners[static_cast<size_t>(owner_[static_cast<size_t>(j)])] = j;
    return partners;
  }

 private:
  /// Gives an expected row a found row, and moves the rows that had it. The path is at most as long as a near-tie.
  bool place(int64_t row, std::vector<bool>& visited) {
    for (const int64_t j : candidates(row)) {
      const auto at = static_cast<size_t>(j);
      if (visited[at]) continue;
      visited[at] = true;
      if (owner_[at] >= 0 && !place(owner_[at], visited)) continue;
      owner_[at] = row;
      return true;
    }
    return false;
  }

  /// Returns the found rows that equal an expected row. Large parts are compared only with rows that are left.
  const std::vector<int64_t>& candidates(int64_t row) {
    std::optional<std::vector<int64_t>>& known = allowed_[static_cast<size_t>(row)];
    if (known) return *known;
    at::Tensor left = torch::arange(count_);
    for (const Part& part : parts_) {
      const at::Tensor found = part.found[image_].index_select(0, left);
      left = left.masked_select(agree(part, part.expected[image_][row].unsqueeze(0), found));
    }
    const int64_t* data = left.const_data_ptr<int64_t>();
    known.emplace(data, data + left.numel());
    return *known;
  }

  const std::vector<Part>& parts_;
  int64_t image_;
  int64_t count_;
  std::vector<std::optional<std::vector<int64_t>>> allowed_;
  std::vector<int64_t> owner_;  // the expected row that has a found row
};

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

/// Finds detections among the members of a container: the only scores, boxes, and all others with as many rows.
std::optional<Group> group_of(const Members& members, const NamedTensors& tensors) {
  std::vector<std::string> candidates;
  std::vector<std::string> by_name;
  for (const auto& [own, leaf] : members) {
    const auto sizes = row_sizes(tensors.at(leaf), 0);
    const bool has_boxes = sizes && std::any_of(members.begin(), members.end(), [&](const auto& member) {
                             const at::Tensor& other = tensors.at(member.second);
                             return is_real(other) && begins_with(other, *sizes) && other.size(-1) == kBoxColumns &&
                                    other.dim() == static_cast<int64_t>(sizes->size()) + 1;
                           });
    if (!has_boxes) continue;
    candidates.push_back(leaf);
    if (kScoreNames.count(own) != 0) by_name.push_back(leaf);
  }
  if (candidates.size() != 1) candidates = by_name;
  if (candidates.size() != 1) return std::nullopt;
  Group group{{}, candidates.front()};
  const auto sizes = *row_sizes(tensors.at(group.scores), 0);
  for (const auto& [own, leaf] : members) {
    if (begins_with(tensors.at(leaf), sizes)) group.names.push_back(leaf);
  }
  return group;
}

std::vector<Group> groups_in(const NamedTensors& tensors) {
  std::vector<Group> groups;
  std::set<std::string> taken;
  for (const auto naming : {as_sibling, as_entry}) {
    std::map<std::string, Members> containers;
    for (const auto& [leaf, tensor] : tensors) {
      const auto [container, own] = naming(leaf);
      if (!container.empty() && taken.count(leaf) == 0) containers[container].emplace_back(own, leaf);
    }
    for (const auto& [container, members] : containers) {
      auto group = group_of(members, tensors);
      if (!group) continue;
      taken.insert(group->names.begin(), group->names.end());
      groups.push_back(std::move(*group));
    }
  }
  for (const auto& [leaf, tensor] : tensors) {
    if (taken.count(leaf) == 0 && row_sizes(tensor, 1) && tensor.size(-1) == kColumns) {
      groups.push_back({{leaf}, leaf, true});
    }
  }
  std::set<std::string> grouped;
  for (const Group& group : groups) grouped.insert(group.names.begin(), group.names.end());
  const auto is_incomplete = [&](const Group& group) {
    const auto sizes = *row_sizes(tensors.at(group.scores), group.has_columns ? 1 : 0);
    return std::any_of(tensors.begin(), tensors.end(), [&](const auto& leaf) {
      return grouped.count(leaf.first) == 0 && begins_with(leaf.second, sizes);
    });
  };
  groups.erase(std::remove_if(groups.begin(), groups.end(), is_incomplete), groups.end());
  return groups;
}

/// Returns the parts of a group, scores first; nothing if its scores do not allow rows to move.
std::optional<std::vector<Part>> parts_of(const Group& group, const NamedTensors& expected, const NamedTensors& found,
                                          const std::vector<int64_t>& sizes, double limit) {
  std::vector<Part> parts;
  if (group.has_columns) {
    const at::Tensor a = as_rows(expected.at(group.scores), sizes);
    const at::Tensor b = as_rows(found.at(group.scores), sizes);
    const auto part = [&](int64_t from, int64_t to, bool is_whole) {
      return part_of(a.slice(2, from, to), b.slice(2, from, to), is_whole, limit);
    };
    parts = {part(kBoxColumns, kBoxColumns + 1, false), part(kBoxColumns + 1, kColumns, true),
             part(0, kBoxColumns, false)};
    if (!holds_detections(a) || !holds_detections(b)) return std::nullopt;
  } else {
    for (const std::string& name : group.names) {
      const at::Tensor& a = expected.at(name);
      const at::Tensor& b = found.at(name);
      const Part part = part_of(as_rows(a, sizes), as_rows(b, sizes), !a.is_floating_point(), limit);
      parts.insert(name == group.scores ? parts.begin() : parts.end(), part);
    }
    std::stable_sort(parts.begin() + 1, parts.end(),
                     [](const Part& one, const Part& other) { return one.expected.size(2) < other.expected.size(2); });
  }
  const Part& scores = parts.front();
  for (const at::Tensor& side : {scores.expected, scores.found}) {
    if (!descend(side.squeeze(2))) return std::nullopt;
  }
  if (!agree(scores, scores.expected, scores.found).all().item<bool>()) return std::nullopt;
  return parts;
}

}  // namespace

bool holds_detections(const at::Tensor& tensor) {
  if (!is_real(tensor) || tensor.dim() < 2 || tensor.dim() > 3 || tensor.size(-1) != kColumns) return false;
  const at::Tensor score = tensor.select(-1, kBoxColumns);
  const at::Tensor label = tensor.select(-1, kBoxColumns + 1);
  return at::logical_and(at::logical_and(score >= 0, score <= 1), label == label.round()).all().item<bool>();
}

NamedTensors in_expected_order(const NamedTensors& expected, const NamedTensors& found, double limit) {
  NamedTensors moved;
  for (const Group& group : groups_in(expected)) {
    const bool are_alike = std::all_of(group.names.begin(), group.names.end(), [&](const std::string& name) {
      const at::Tensor& a = expected.at(name);
      const at::Tensor& b = found.at(name);
      const bool are_usable = is_usable(a) && is_usable(b) && a.numel() > 0;
      return are_usable && a.sizes() == b.sizes() && a.scalar_type() == b.scalar_type();
    });
    if (!are_alike) continue;
    const auto sizes = *row_sizes(expected.at(group.scores), group.has_columns ? 1 : 0);
    const auto parts = parts_of(group, expected, found, sizes, limit);
    if (!parts) continue;
    const int64_t rows = sizes.back();
    std::vector<int64_t> order;
    for (int64_t image = 0; image < parts->front().expected.size(0); ++image) {
      const auto partners = Partners(*parts, image).find();
      if (!partners) break;
      for (const int64_t j : *partners) order.push_back(image * rows + j);
    }
    const int64_t count = parts->front().expected.size(0) * rows;
    if (static_cast<int64_t>(order.size()) != count) continue;
    for (const std::string& name : group.names) {
      const at::Tensor tensor = found.at(name).detach().cpu();
      const int64_t values = tensor.numel() / count;
      moved[name] =
          tensor.reshape({count, values}).index_select(0, at::tensor(order, at::kLong)).reshape(tensor.sizes());
    }
  }
  return moved;
}

}  // namespace hybrid_rt
