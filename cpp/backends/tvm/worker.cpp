#include "worker.h"

#include <unistd.h>

namespace hybrid_rt::tvm {

struct Worker::State {
  std::mutex mutex{};  // guards the members below
  std::condition_variable changed{};
  const std::function<void()>* task = nullptr;
  std::exception_ptr failure{};
  bool stop = false;
  std::thread thread{};
};

Worker::Worker() : process_(getpid()), state_(std::make_unique<State>()) {
  state_->thread = std::thread([state = state_.get()] { loop(*state); });
}

Worker::~Worker() {
  if (!is_here()) {
    // Leaked on purpose: the condition's destructor would wait forever for the thread that no longer exists.
    [[maybe_unused]] const State* const left = state_.release();
    return;
  }
  {
    const std::lock_guard lock(state_->mutex);
    state_->stop = true;
  }
  state_->changed.notify_all();
  state_->thread.join();
}

bool Worker::is_here() const { return process_ == getpid(); }

void Worker::run(const std::function<void()>& task) {
  std::unique_lock lock(state_->mutex);
  state_->failure = nullptr;
  state_->task = &task;
  state_->changed.notify_all();
  state_->changed.wait(lock, [this] { return state_->task == nullptr; });
  if (state_->failure) std::rethrow_exception(state_->failure);
}

void Worker::loop(State& state) {
  std::unique_lock lock(state.mutex);
  while (true) {
    state.changed.wait(lock, [&state] { return state.stop || state.task != nullptr; });
    if (state.stop) return;
    const std::function<void()>* task = state.task;
    lock.unlock();
    std::exception_ptr failure;
    try {
      (*task)();
    } catch (...) {
      failure = std::current_exception();
    }
    lock.lock();
    state.failure = failure;
    state.task = nullptr;
    state.changed.notify_all();
  }
}

}  // namespace hybrid_rt::tvm
