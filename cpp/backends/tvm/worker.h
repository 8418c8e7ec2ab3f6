#pragma once

#include <condition_variable>
#include <exception>
#include <functional>
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

  /// Runs `task` on the thread, waits for it, and throws what it throws.
  void run(const std::function<void()>& task);

 private:
  void loop();

  std::mutex mutex_;  // guards what follows
  std::condition_variable changed_;
  const std::function<void()>* task_ = nullptr;
  std::exception_ptr failure_;
  bool stop_ = false;
  std::thread thread_;
};

}  // namespace hybrid_rt::tvm
