#pragma once

#include <sys/types.h>

#include <condition_variable>
#include <exception>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>

namespace hybrid_rt::tvm {

/// A thread that runs one task at a time, for one caller at a time.
class Worker {
 public:
  Worker();
  Worker(const Worker&) = delete;
  Worker& operator=(const Worker&) = delete;
  ~Worker();

  /// Runs `task` on the thread, waits for it, and rethrows its exception. Requires is_here().
  void run(const std::function<void()>& task);

  /// Returns true if the thread exists in this process. A forked process has none of its parent's threads.
  bool is_here() const;

 private:
  struct State;
  static void loop(State& state);

  pid_t process_;
  std::unique_ptr<State> state_;
};

}  // namespace hybrid_rt::tvm
