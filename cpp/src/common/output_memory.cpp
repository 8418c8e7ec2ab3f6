#include "hybrid_rt/plugin/output_memory.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/set.h>
#include <c10/core/StorageImpl.h>
#include <c10/util/accumulate.h>
#include <c10/util/strides.h>

#include <atomic>

#include "common/platform/large_pages.h"

namespace hybrid_rt {
namespace {

/// Smaller ones rarely contain a large page, of 2 MiB, as a whole, and malloc() keeps their memory between calls.
constexpr std::size_t kLargeBytes = std::size_t{4} << 20;

/// glibc's malloc() returns larger blocks to the system when they are freed (DEFAULT_MMAP_THRESHOLD_MAX).
constexpr std::size_t kReturnedBytes = std::size_t{32} << 20;

/// Returns true if no tensor has the storage any more.
bool is_unused(const c10::Storage& storage) {
  if (!storage || storage.use_count() != 1) return false;
  std::atomic_thread_fence(std::memory_order_acquire);  // orders the last user's reads before the next call's writes
  return true;
}

}  // namespace

at::Tensor empty_output(at::IntArrayRef sizes, const at::TensorOptions& options) {
  at::Tensor output = at::empty(sizes, options.memory_format(at::MemoryFormat::Contiguous));
  if (output.is_cpu() && output.nbytes() >= kLargeBytes) {
    platform::ask_for_large_pages(output.mutable_data_ptr(), output.nbytes());
  }
  return output;
}

at::Tensor OutputMemory::empty(std::size_t output, at::IntArrayRef sizes, const at::TensorOptions& options) {
  const std::size_t bytes = static_cast<std::size_t>(c10::multiply_integers(sizes)) * options.dtype().itemsize();
  if (!options.device().is_cpu() || bytes < kReturnedBytes) return empty_output(sizes, options);
  const std::lock_guard lock(mutex_);
  if (kept_.size() <= output) kept_.resize(output + 1);
  Kept& kept = kept_[output];
  if (is_unused(kept.storage) && kept.storage.nbytes() == bytes && kept.storage.data() == kept.data) {
    return at::empty({0}, options).set_(kept.storage, 0, sizes, c10::contiguous_strides(sizes));
  }
  kept = {};  // frees unused memory first
  at::Tensor result = empty_output(sizes, options);
  kept = {result.storage(), result.const_data_ptr()};
  return result;
}

}  // namespace hybrid_rt
