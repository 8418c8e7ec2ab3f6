#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

namespace hybrid_rt {

/// Tensors of a result by the keys and indices that lead to them, joined by dots.
using NamedTensors = std::map<std::string, at::Tensor>;

/// Columns of a box.
constexpr int64_t kBoxColumns = 4;

/// Detections: the names of their tensors, and the one that has the scores, alone or as a column beside other fields.
struct Group {
  std::vector<std::string> names;
  std::string scores;
  bool has_columns = false;
  std::vector<int64_t> sizes;  ///< what each tensor begins with: [n] or [b, n]
};

/// Finds detections in other containers than a list of dicts: tensors with one row per box. These are scores [n], [n,
/// 1] or with a batch before, boxes with 4 columns, and any others with the same first sizes, in one container or at
/// the same index of parallel lists. A tensor [n, k], k > 4, with scores in its columns is such a group as well, alone
/// or beside others. Leaves out groups if a tensor elsewhere may have rows of theirs.
std::vector<Group> groups_in(const NamedTensors& tensors);

/// Returns true for a dense tensor of numbers with at least one axis.
bool is_usable(const at::Tensor& tensor);

/// Returns a tensor that begins with `sizes` on the CPU, as [batch, rows, values].
at::Tensor as_rows(const at::Tensor& tensor, const std::vector<int64_t>& sizes);

/// Returns true if scores [batch, rows] descend in each image and are not all equal there, so that they decide the
/// order.
bool descend(const at::Tensor& scores);

/// Returns for each index of an axis whether all values there are whole.
at::Tensor are_whole(const at::Tensor& tensor, int64_t axis);

/// Returns true for rows of detections in one tensor, [n, 6] or [b, n, 6]: a box, a score in 0..1, and a label, which
/// is a whole number.
bool holds_detections(const at::Tensor& tensor);

/// The scores of rows that have all fields in their columns.
struct ScoreColumns {
  int64_t first;
  bool is_product;  ///< the score is this column times the next one: objectness and class score

  /// Returns the scores [batch, rows, 1] of rows [batch, rows, columns].
  at::Tensor of(const at::Tensor& rows) const;
};

/// Returns the only column of rows [batch, rows, columns] that can be that of scores on both sides: values in 0..1 that
/// descend. If there is none, returns the only two neighbours in 0..1 whose product descends.
std::optional<ScoreColumns> score_columns(const at::Tensor& expected, const at::Tensor& found);

}  // namespace hybrid_rt
