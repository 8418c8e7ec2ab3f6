#pragma once

#include "verify/groups.h"

namespace hybrid_rt {

/// Moves rows of detections (groups.h) that changed places within near-ties back to the expected places. Rows may move
/// only if
/// - the scores of each image descend on both sides, and not all of them are equal,
/// - they agree within `limit` place by place, so that a head which keeps another input's order is not excused,
/// - rows of all tensors together, scores included, agree one to one within `limit`.
/// `limit` is relative to the largest value of a tensor, or of columns of the same kind; whole numbers are equal or
/// not.
///
/// \param found tensors of the hybrid, with the names of `expected`
/// \return the tensors of `found` whose rows moved
NamedTensors in_expected_order(const NamedTensors& expected, const NamedTensors& found, double limit);

}  // namespace hybrid_rt
