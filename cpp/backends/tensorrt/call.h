#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/Exception.h>

#include <string>
#include <vector>

#include "bindings.h"
#include "context_pool.h"
#include "library.h"

namespace hybrid_rt::tensorrt {

/// TensorRT asks for addresses that are multiples of 256 (IExecutionContext::setTensorAddress). torch's allocations
/// are; a view, such as one image of a batch, may not be.
bool is_aligned(const at::Tensor& tensor);

/// Returns a copy at an address of torch's own. A profiler sees each one as "hybrid_rt copied input", which `hybrid-rt
/// profile` counts.
at::Tensor aligned_copy(const at::Tensor& input);
/// Likewise, into memory that is there.
void copy_aligned(const at::Tensor& input, const at::Tensor& into);

/// Returns what an error of torch's says, to be put into a sentence.
std::string text_of(const c10::Error& error);

/// The memory of one call: outputs, copies of inputs that are not aligned, and what the engine needs while it runs.
struct CallMemory {
  std::vector<at::Tensor> outputs;
  std::vector<at::Tensor> copies;
  at::Tensor scratch;
};

/// Sets the shapes and addresses of a call. Outputs and scratch are torch's, of the current stream. Throws
/// Error(kBackend), also where there is not enough memory: the context can be used again afterwards.
CallMemory prepare_call(const Library& library, const Bindings& bindings, PooledContext& context,
                        at::ArrayRef<at::Tensor> inputs, const std::vector<c10::ScalarType>& output_dtypes);

}  // namespace hybrid_rt::tensorrt
