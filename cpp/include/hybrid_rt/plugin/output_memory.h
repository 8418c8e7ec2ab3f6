#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/Storage.h>
#include <c10/core/TensorOptions.h>

#include <cstddef>
#include <mutex>
#include <vector>

namespace hybrid_rt {

/// Returns a contiguous tensor that is not initialised, as at::empty() does.
///
/// Asks for large pages if the tensor is large and on the CPU. Each call has new outputs, and the system clears new
/// memory when it is first written, which costs a page fault per 4 KiB with small pages.
at::Tensor empty_output(at::IntArrayRef sizes, const at::TensorOptions& options);

/// Gives an engine memory for its outputs. Memory that malloc() would return to the system after each call is kept for
/// the next one: the system needs milliseconds to clear it again, even with large pages.
class OutputMemory {
 public:
  /// Returns a tensor for an output, as empty_output() does. A large one has the memory that it had in the last call,
  /// if its bytes are the same and no tensor has this memory any more.
  ///
  /// May be called concurrently.
  at::Tensor empty(std::size_t output, at::IntArrayRef sizes, const at::TensorOptions& options);

 private:
  struct Kept {
    c10::Storage storage{};
    const void* data = nullptr;  ///< its memory. Another process may use memory that torch moved the storage to.
  };

  std::mutex mutex_;
  std::vector<Kept> kept_;  // by output
};

}  // namespace hybrid_rt
