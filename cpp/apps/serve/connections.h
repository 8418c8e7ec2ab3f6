#pragma once

#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <map>
#include <mutex>
#include <thread>

namespace hybrid_rt::serve {

/// Closes connections that hold a place and ask nothing: heads that do not come to their end, peers that have left.
///
/// libmicrohttpd knows a time limit for silence alone, which a byte now and then keeps from running out.
class Connections {
 public:
  struct Limits {
    std::size_t most = 512;                  ///< beyond it, the one that has waited longest with half a head goes
    std::chrono::milliseconds head{10'000};  ///< for the first head of a connection to be whole
    std::chrono::milliseconds idle{30'000};  ///< for each later one, from the answer before it on
  };

  explicit Connections(const Limits& limits);
  Connections(const Connections&) = delete;
  Connections& operator=(const Connections&) = delete;
  ~Connections();

  /// A connection was opened. It may be closed before its descriptor is, so that no other one is hit.
  void opened(const void* connection, int descriptor);
  void closed(const void* connection);
  /// Its request's head is whole.
  void has_head(const void* connection);
  /// Its request is whole: whoever waits for an answer may have closed its own half.
  void has_request(const void* connection);
  /// Its request was answered, or given up.
  void is_done(const void* connection);

 private:
  using Clock = std::chrono::steady_clock;
  enum class Reads { kHead, kBody, kNothing };
  struct Place {
    int descriptor = -1;
    Reads reads = Reads::kHead;
    Clock::time_point until;
  };

  void watch();
  void close_late(Clock::time_point now);
  void close_one_before(const void* newest);

  const Limits limits_;
  std::mutex mutex_;  // guards what follows
  std::condition_variable stopping_;
  bool is_stopping_ = false;
  std::map<const void*, Place> places_;
  std::thread watcher_;
};

}  // namespace hybrid_rt::serve
