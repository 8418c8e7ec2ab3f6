#include "verify/near_ties.h"

#include <torch/types.h>

#include <algorithm>
#include <cstdint>
#include <optional>
#include <utility>
#include <vector>

namespace hybrid_rt {
namespace {

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

/// Returns the parts of rows that have all fields in their columns, scores first; nothing without scores. Columns that
/// are whole on both sides have to be equal; others in 0..1 are apart from coordinates.
std::optional<std::vector<Part>> parts_of_columns(const at::Tensor& a, const at::Tensor& b, double limit) {
  const auto scores = score_columns(a, b);
  if (!scores) return std::nullopt;
  std::vector<int64_t> whole;
  std::vector<int64_t> small;
  std::vector<int64_t> others;
  const at::Tensor whole_on_both = at::logical_and(are_whole(a, 2), are_whole(b, 2));
  const bool is_box_score_label = holds_detections(a);
  for (int64_t i = 0; i < a.size(2); ++i) {
    if (i == scores->first && !scores->is_product) continue;
    const at::Tensor values = a.select(2, i);
    const bool is_small = at::logical_and(values >= 0, values <= 1).all().item<bool>();
    const bool must_be_equal = is_box_score_label ? i > kBoxColumns : whole_on_both[i].item<bool>();
    (must_be_equal ? whole : is_small && !is_box_score_label ? small : others).push_back(i);
  }
  std::vector<Part> parts = {part_of(scores->of(a), scores->of(b), false, limit)};
  for (const auto& [columns, must_be_equal] : {std::pair{whole, true}, {small, false}, {others, false}}) {
    if (columns.empty()) continue;
    const at::Tensor index = at::tensor(columns, at::kLong);
    parts.push_back(part_of(a.index_select(2, index), b.index_select(2, index), must_be_equal, limit));
  }
  return parts;
}

/// Returns true for rows [batch, rows, 1] of floats that are whole on both sides, such as labels.
bool is_label(const at::Tensor& a, const at::Tensor& b) {
  return a.size(2) == 1 && are_whole(a, 2).item<bool>() && are_whole(b, 2).item<bool>();
}

/// Returns the parts of a group, scores first; nothing if its scores do not allow rows to move.
std::optional<std::vector<Part>> parts_of(const Group& group, const NamedTensors& expected, const NamedTensors& found,
                                          double limit) {
  std::vector<Part> parts;
  if (group.has_columns) {
    const auto columns = parts_of_columns(as_rows(expected.at(group.scores), group.sizes),
                                          as_rows(found.at(group.scores), group.sizes), limit);
    if (!columns) return std::nullopt;
    parts = *columns;
  }
  for (const std::string& name : group.names) {
    if (group.has_columns && name == group.scores) continue;
    const at::Tensor a = as_rows(expected.at(name), group.sizes);
    const at::Tensor b = as_rows(found.at(name), group.sizes);
    const bool must_be_equal = name != group.scores && (!expected.at(name).is_floating_point() || is_label(a, b));
    parts.insert(name == group.scores ? parts.begin() : parts.end(), part_of(a, b, must_be_equal, limit));
  }
  std::stable_sort(parts.begin() + 1, parts.end(),
                   [](const Part& one, const Part& other) { return one.expected.size(2) < other.expected.size(2); });
  const Part& scores = parts.front();
  for (const at::Tensor& side : {scores.expected, scores.found}) {
    if (!descend(side.squeeze(2))) return std::nullopt;
  }
  if (!agree(scores, scores.expected, scores.found).all().item<bool>()) return std::nullopt;
  return parts;
}

}  // namespace

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
    const auto parts = parts_of(group, expected, found, limit);
    if (!parts) continue;
    const int64_t rows = group.sizes.back();
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
