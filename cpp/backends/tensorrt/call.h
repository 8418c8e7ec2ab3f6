#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/Exception.h>

#include <string>
#include <vector>

#include "bindings.h"
#include "context_pool.h"
#include "library.h"

namespace hybrid_rt::tensorrt {

/// Returns true if a tensor's address is a multiple of 256, as TensorRT requires (IExecutionContext::setTensorAddress).
/// torch's allocations are aligned; a view, such as one image of a batch, may not be.
bool is_aligned(const at::Tensor& tensor);

/// Returns a copy in an allocation of its own. A profiler shows each copy as "hybrid_rt copied input", which `hybrid-rt
/// profile` counts.
at::Tensor aligned_copy(const at::Tensor& input);
/// Does the same into existing memory.
void copy_aligned(const at::Tensor& input, const at::Tensor& into);

/// Returns the message of torch's error in a form that fits into a sentence.
std::string text_of(const c10::Error& error);

/// The memory of one call: outputs, copies of unaligned inputs, and the engine's scratch memory.
struct CallMemory {
  std::vector<at::Tensor> outputs;
  std::vector<at::Tensor> copies;
  at::Tensor scratch;
};

/// Sets the shapes and addresses of a call. Outputs and scratch memory come from torch, in the current stream. Throws
/// Error(kBackend), also if memory runs out; the context can be used again afterwards.
CallMemory prepare_call(const Library& library, const Bindings& bindings, PooledContext& context,
                        at::ArrayRef<at::Tensor> inputs, const std::vector<c10::ScalarType>& output_dtypes);

}  // namespace hybrid_rt::tensorrt
