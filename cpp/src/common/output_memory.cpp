#include "hybrid_rt/plugin/output_memory.h"

#include <ATen/ops/empty.h>

#include <cstddef>

#include "common/platform/large_pages.h"

namespace hybrid_rt {
namespace {

/// Smaller ones rarely contain a large page, of 2 MiB, as a whole, and malloc() keeps their memory between calls.
constexpr std::size_t kLargeBytes = std::size_t{4} << 20;

}  // namespace

at::Tensor empty_output(at::IntArrayRef sizes, const at::TensorOptions& options) {
  at::Tensor output = at::empty(sizes, options.memory_format(at::MemoryFormat::Contiguous));
  if (output.is_cpu() && output.nbytes() >= kLargeBytes) {
    platform::ask_for_large_pages(output.mutable_data_ptr(), output.nbytes());
  }
  return output;
}

}  // namespace hybrid_rt
