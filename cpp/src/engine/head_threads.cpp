#include "hybrid_rt/plugin/head_threads.h"

#include <omp.h>

#include <atomic>

#include "common/platform/fork_handler.h"

// Of OpenMP 5.0: null with an older library. Declared here because GCC's omp.h gives it no weak reference.
extern "C" int omp_pause_resource_all(omp_pause_resource_t kind) noexcept __attribute__((weak));

namespace hybrid_rt {
namespace {

std::atomic<bool> was_forked{false};

[[maybe_unused]] const bool is_registered = [] {
  platform::call_in_forked_children([] { was_forked = true; });
  return true;
}();

}  // namespace

void end_idle_head_threads() {
  if (omp_pause_resource_all == nullptr || omp_get_max_threads() <= 1 || omp_in_parallel() != 0) return;
  if (was_forked) return;  // it would wait for the parent's threads for ever
  omp_pause_resource_all(omp_pause_soft);
}

}  // namespace hybrid_rt
