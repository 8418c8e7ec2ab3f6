#pragma once

#include <ATen/core/Tensor.h>

#include <map>
#include <string>

namespace hybrid_rt {

/// Tensors of a result by the keys and indices that lead to them, joined by dots.
using NamedTensors = std::map<std::string, at::Tensor>;

/// Returns true for rows of detections in one tensor, [n, 6] or [b, n, 6]: a box, a score in 0..1, and a label, which
/// is a whole number.
bool holds_detections(const at::Tensor& tensor);

/// Moves rows that changed places within near-ties back to the expected places.
///
/// Detections in other containers than a list of dicts are tensors with one row per box: scores [n] or [b, n], boxes
/// with 4 columns, and any others with the same first sizes, in one container or at the same index of parallel lists.
/// A tensor [n, 6] or [b, n, 6] of boxes, score and label holds detections as well. Rows may move only if
/// - the scores of each image descend on both sides, and not all of them are equal,
/// - they agree within `limit` place by place, so that a head which keeps another input's order is not excused,
/// - rows of all tensors together, scores included, agree one to one within `limit`,
/// - no other tensor of the result has such rows.
/// `limit` is relative to the largest value of a tensor; whole numbers are equal or not.
///
/// \param found tensors of the hybrid, with the names of `expected`
/// \return the tensors of `found` whose rows moved
NamedTensors in_expected_order(const NamedTensors& expected, const NamedTensors& found, double limit);

}  // namespace hybrid_rt
