#include "worker.h"

#include <unistd.h>

#include <algorithm>
#include <condition_variable>
#include <exception>
#include <memory>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

namespace hybrid_rt::tvm {

class Worker::Thread {
 public:
  explicit Thread(std::string kind) : kind_(std::move(kind)), process_(getpid()), thread_([this] { loop(); }) {}
  Thread(const Thread&) = delete;
  Thread& operator=(const Thread&) = delete;
  ~Thread() {
    {
      const std::lock_guard lock(mutex_);
      stop_ = true;
    }
    changed_.notify_all();
    thread_.join();
  }

  const std::string& kind() const { return kind_; }
  bool is_here() const { return process_ == getpid(); }

  void run(const std::function<void()>& task) {
    std::unique_lock lock(mutex_);
    failure_ = nullptr;
    task_ = &task;
    changed_.notify_all();
    changed_.wait(lock, [this] { return task_ == nullptr; });
    if (failure_) std::rethrow_exception(failure_);
  }

 private:
  void loop() {
    std::unique_lock lock(mutex_);
    while (true) {
      changed_.wait(lock, [this] { return stop_ || task_ != nullptr; });
      if (stop_) return;
      const std::function<void()>* task = task_;
      lock.unlock();
      std::exception_ptr failure;
      try {
        (*task)();
      } catch (...) {
        failure = std::current_exception();
      }
      lock.lock();
      failure_ = failure;
      task_ = nullptr;
      changed_.notify_all();
    }
  }

  std::string kind_;
  pid_t process_;
  std::mutex mutex_;  // guards the members below
  std::condition_variable changed_;
  const std::function<void()>* task_ = nullptr;
  std::exception_ptr failure_;
  bool stop_ = false;
  std::thread thread_;
};

struct Worker::Idle {
  std::mutex mutex;
  std::vector<Thread*> threads;
};

/// Returns the idle threads. They are never destroyed, because they would still run when the process ends.
Worker::Idle& Worker::idle() {
  static Idle* const idle = new Idle();
  return *idle;
}

Worker::Worker(const std::string& kind, const std::function<void()>& prepare) {
  {
    const std::lock_guard lock(idle().mutex);
    std::vector<Thread*>& threads = idle().threads;
    const auto found = std::find_if(threads.begin(), threads.end(),
                                    [&](const Thread* thread) { return thread->is_here() && thread->kind() == kind; });
    if (found != threads.end()) {
      thread_ = *found;
      threads.erase(found);
      return;
    }
  }
  auto thread = std::make_unique<Thread>(kind);
  thread->run(prepare);
  thread_ = thread.release();
}

Worker::~Worker() {
  // After a fork, the thread exists only in the parent. Its object is left as it is, because the destructor of its
  // condition would wait for the thread.
  if (!is_here()) return;
  const std::lock_guard lock(idle().mutex);
  idle().threads.push_back(thread_);
}

bool Worker::is_here() const { return thread_->is_here(); }

void Worker::run(const std::function<void()>& task) { thread_->run(task); }

}  // namespace hybrid_rt::tvm
