#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/TensorOptions.h>

namespace hybrid_rt {

/// Returns a contiguous tensor that is not initialised, as at::empty() does.
///
/// Asks for large pages if the tensor is large and on the CPU. Each call has new outputs, and the system clears new
/// memory when it is first written, which costs a page fault per 4 KiB with small pages.
at::Tensor empty_output(at::IntArrayRef sizes, const at::TensorOptions& options);

}  // namespace hybrid_rt
