#include "common/fork.h"

#include <ATen/Parallel.h>
#include <omp.h>

#include <atomic>
#include <mutex>
#include <new>
#include <shared_mutex>
#include <string>

#include "common/platform/fork_handler.h"
#include "hybrid_rt/log.h"

namespace hybrid_rt {
namespace {

/// Number of threads before the fork; 0 once that was reported.
std::atomic<int> threads_lost{0};

/// Calls hold it as readers. glibc prefers readers, so a waiting fork also holds the door, which keeps new calls out.
std::shared_mutex calls;
std::mutex door;
/// Depth of this thread's nested calls. An engine that runs another one, or that forks, must not wait for itself.
thread_local int depth = 0;

void wait_for_calls() {
  if (depth > 0) return;
  door.lock();
  calls.lock();
}

void let_calls_go() {
  if (depth > 0) return;
  calls.unlock();
  door.unlock();
}

/// Runs in the child's only thread. Nothing else is safe here; the rest happens in the next call.
void leave_threads_behind() {
  // Created again instead of unlocked, because glibc compares the writer's thread number, which is another one in the
  // child.
  new (&calls) std::shared_mutex;
  new (&door) std::mutex;
  if (depth > 0) calls.lock_shared();
  const int threads = omp_get_max_threads();
  if (threads <= 1) return;
  omp_set_num_threads(1);
  threads_lost = threads;
}

void prepare_for_fork() {
  [[maybe_unused]] static const bool is_registered = [] {
    platform::call_around_forks(&wait_for_calls, &let_calls_go, &leave_threads_behind);
    return true;
  }();
  if (threads_lost.load(std::memory_order_relaxed) == 0) return;
  if (const int threads = threads_lost.exchange(0); threads != 0) {
    at::set_num_threads(1);  // also sets MKL's number, which is separate from OpenMP's
    log(LogLevel::kWarning, "this process was forked after a module had run in " + std::to_string(threads) +
                                " threads, which the fork lacks: torch computes in one thread. To use more, load in "
                                "the children, or start them with 'spawn'");
  }
}

}  // namespace

EngineCall::EngineCall() {
  prepare_for_fork();
  if (depth++ > 0) return;
  const std::lock_guard through(door);
  calls.lock_shared();
}

EngineCall::~EngineCall() {
  if (--depth == 0) calls.unlock_shared();
}

}  // namespace hybrid_rt
