#include "hybrid_rt/plugin/head_threads.h"

#include <ATen/Parallel.h>
#include <doctest/doctest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cstdint>
#include <filesystem>
#include <iterator>

namespace {

/// Threads of this process, as the kernel counts them.
int64_t threads_here() {
  const std::filesystem::directory_iterator tasks("/proc/self/task");
  return std::distance(begin(tasks), end(tasks));
}

/// Runs a parallel operator, and returns how many threads took part.
int compute_in_threads(int count) {
  at::set_num_threads(count);
  std::atomic<int> parts{0};
  at::parallel_for(0, count, 1, [&](int64_t, int64_t) { ++parts; });
  return parts;
}

/// Leaves torch's number of threads as it was.
struct ThreadsKept {
  int before = at::get_num_threads();
  ~ThreadsKept() { at::set_num_threads(before); }
};

}  // namespace

TEST_CASE("OpenMP's idle threads end before an engine runs, and come back") {
  const ThreadsKept kept;
  at::set_num_threads(3);  // the first time, it starts a pool of torch's own, which stays
  hybrid_rt::end_idle_head_threads();
  const int64_t before = threads_here();
  REQUIRE(compute_in_threads(3) == 3);
  CHECK(threads_here() == before + 2);
  hybrid_rt::end_idle_head_threads();
  CHECK(threads_here() == before);
  hybrid_rt::end_idle_head_threads();  // none are left
  CHECK(compute_in_threads(3) == 3);
  CHECK(threads_here() == before + 2);
}

TEST_CASE("no threads are ended inside of a parallel operator") {
  const ThreadsKept kept;
  at::set_num_threads(2);
  std::atomic<int> parts{0};
  at::parallel_for(0, 2, 1, [&](int64_t, int64_t) {
    hybrid_rt::end_idle_head_threads();
    ++parts;
  });
  CHECK(parts == 2);
}

TEST_CASE("a forked process does not wait for its parent's threads") {
  const ThreadsKept kept;
  REQUIRE(compute_in_threads(2) == 2);
  const pid_t child = fork();
  if (child == 0) {
    alarm(10);
    hybrid_rt::end_idle_head_threads();
    _exit(0);
  }
  int status = -1;
  REQUIRE(waitpid(child, &status, 0) == child);
  CHECK(WIFEXITED(status));
  CHECK(compute_in_threads(2) == 2);
}
