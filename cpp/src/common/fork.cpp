#include "common/fork.h"

#include <ATen/Parallel.h>
#include <omp.h>

#include <atomic>
#include <string>

#include "common/platform/fork_handler.h"
#include "hybrid_rt/log.h"

namespace hybrid_rt {
namespace {

/// Threads that the process had before it was forked; 0 once that was said.
std::atomic<int> threads_lost{0};

/// In the child, whose only thread is this one. No more than this is safe here; the rest waits for prepare_for_fork().
void leave_threads_behind() {
  const int threads = omp_get_max_threads();
  if (threads <= 1) return;
  omp_set_num_threads(1);
  threads_lost = threads;
}

}  // namespace

void prepare_for_fork() {
  [[maybe_unused]] static const bool is_registered = [] {
    platform::call_in_forked_children(&leave_threads_behind);
    return true;
  }();
  if (threads_lost.load(std::memory_order_relaxed) == 0) return;
  if (const int threads = threads_lost.exchange(0); threads != 0) {
    at::set_num_threads(1);  // MKL's number too, which it keeps apart from OpenMP's
    log(LogLevel::kWarning, "this process was forked after a module had run in " + std::to_string(threads) +
                                " threads, which are not here: torch computes in one. Load in the children, or start "
                                "them with 'spawn', for more");
  }
}

}  // namespace hybrid_rt
