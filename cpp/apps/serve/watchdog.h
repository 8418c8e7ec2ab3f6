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

/// Knows which pictures workers are at, and notices those that do not come to an end.
///
/// A thread that is stuck in a vendor's call can't be ended without what it holds: locks, memory, a GPU's queue. So its
/// request is given up while the thread stays where it is, and once every worker of a model is stuck the process is
/// told to end, for its supervisor to start another one.
class Watchdog {
 public:
  struct Options {
    std::chrono::milliseconds limit{0};  ///< for one picture from its decoding on; 0: any
    int workers = 1;                     ///< of each model
    std::function<void(const std::string& model)> all_stuck{};
  };

  explicit Watchdog(Options options);
  Watchdog(const Watchdog&) = delete;
  Watchdog& operator=(const Watchdog&) = delete;
  ~Watchdog();

  /// A worker, the calling thread, has begun with a picture. `give_up` is called from another thread if end() has not
  /// been called within the limit.
  std::uint64_t begin(const std::string& model, std::function<void()> give_up);
  /// It has ended; also after it was given up.
  void end(std::uint64_t ticket);

 private:
  using Clock = std::chrono::steady_clock;
  struct Picture {
    std::string model;
    std::thread::id worker;
    Clock::time_point until;
    std::function<void()> give_up;
    bool is_stuck = false;
  };

  void watch();
  bool are_all_stuck(const std::string& model) const;

  const Options options_;
  std::mutex mutex_;  // guards what follows
  std::condition_variable changed_;
  bool is_stopping_ = false;
  std::uint64_t last_ = 0;
  std::map<std::uint64_t, Picture> pictures_;
  std::thread watcher_;
};

}  // namespace hybrid_rt::serve
