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

/// Threads that the process had before it was forked; 0 once that was said.
std::atomic<int> threads_lost{0};

/// Held shared by calls. glibc prefers readers: a fork that waits holds the door, so that no new call gets in.
std::shared_mutex calls;
std::mutex door;
/// Calls of this thread, one within the other: an engine that runs another one, or that forks, must not wait for
/// itself.
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

/// In the child, whose only thread is this one. No more than this is safe here; the rest waits for the next call.
void leave_threads_behind() {
  // Made again instead of unlocked: glibc compares the writer with the thread, which has another number in the child.
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
    at::set_num_threads(1);  // MKL's number too, which it keeps apart from OpenMP's
    log(LogLevel::kWarning, "this process was forked after a module had run in " + std::to_string(threads) +
                                " threads, which are not here: torch computes in one. Load in the children, or start "
                                "them with 'spawn', for more");
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
