#pragma once

#include <functional>
#include <string>

namespace hybrid_rt::tvm {

/// A thread that runs one task at a time, for one caller at a time.
///
/// The thread does not end with its Worker; the next Worker of its kind takes it over. TVM keeps a pool of threads per
/// calling thread, and ends the pool with it. Each thread of the pool yields the CPU 300,000 times before it notices,
/// which takes minutes if other processes use the CPUs.
class Worker {
 public:
  /// Takes an idle thread of this kind, or starts one and runs `prepare` on it.
  Worker(const std::string& kind, const std::function<void()>& prepare);
  Worker(const Worker&) = delete;
  Worker& operator=(const Worker&) = delete;
  ~Worker();

  /// Runs `task` on the thread, waits for it, and rethrows its exception. Requires is_here().
  void run(const std::function<void()>& task);

  /// Returns true if the thread exists in this process. A forked process has none of its parent's threads.
  bool is_here() const;

 private:
  class Thread;
  struct Idle;
  static Idle& idle();

  Thread* thread_;
};

}  // namespace hybrid_rt::tvm
