#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/TensorOptions.h>

namespace hybrid_rt {

/// Returns a contiguous tensor that is not initialised, as at::empty() does.
///
/// A large one in the CPU's memory gets large pages. Each call has new outputs, and the system clears new memory when
/// it is first written: with small pages, an interruption per 4 KiB.
at::Tensor empty_output(at::IntArrayRef sizes, const at::TensorOptions& options);

}  // namespace hybrid_rt
