#pragma once

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <map>
#include <mutex>
#include <string>
#include <thread>

namespace hybrid_rt::serve {

/// Tracks the images that workers are processing and detects those that never finish. A thread that is stuck in a
/// vendor's call can't be ended, because it holds locks, memory, or a GPU's queue. So its request is abandoned while
/// the thread stays where it is. Once every worker of a model is stuck, the process is told to end, so that its
/// supervisor starts another one.
class Watchdog {
 public:
  struct Options {
    std::chrono::milliseconds limit{0};  ///< time limit per image, including its decoding; 0: unlimited
    int workers = 1;                     ///< workers per model
    std::function<void(const std::string& model)> all_stuck{};
  };

  explicit Watchdog(Options options);
  Watchdog(const Watchdog&) = delete;
  Watchdog& operator=(const Watchdog&) = delete;
  ~Watchdog();

  /// Records that a worker, the calling thread, has started an image. `give_up` is called from another thread if end()
  /// is not called within the limit.
  std::uint64_t begin(const std::string& model, std::function<void()> give_up);
  /// Records the end of an image, also after it was abandoned.
  void end(std::uint64_t ticket);

 private:
  using Clock = std::chrono::steady_clock;
  struct Image {
    std::string model;
    std::thread::id worker;
    Clock::time_point until;
    std::function<void()> give_up;
    bool is_stuck = false;
  };

  void watch();
  bool are_all_stuck(const std::string& model) const;

  const Options options_;
  std::mutex mutex_;  // guards the members below
  std::condition_variable changed_;
  bool is_stopping_ = false;
  std::uint64_t last_ = 0;
  std::map<std::uint64_t, Image> images_;
  std::thread watcher_;
};

}  // namespace hybrid_rt::serve
