#pragma once

#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <map>
#include <mutex>
#include <thread>

namespace hybrid_rt::serve {

/// Closes connections that occupy a slot without making requests: incomplete request heads, and peers that have gone
/// away. libmicrohttpd only limits the time without any data, which an occasional byte restarts.
class Connections {
 public:
  struct Limits {
    std::size_t most = 512;                  ///< beyond it, the connection with the oldest incomplete head is closed
    std::chrono::milliseconds head{10'000};  ///< time to complete the first request head
    std::chrono::milliseconds idle{30'000};  ///< time to complete each later head, counted from the previous answer
  };

  explicit Connections(const Limits& limits);
  Connections(const Connections&) = delete;
  Connections& operator=(const Connections&) = delete;
  ~Connections();

  /// Called when a connection was opened. It may be closed by this object only before its descriptor is, because the
  /// number may be reused.
  void opened(const void* connection, int descriptor);
  void closed(const void* connection);
  /// Called when the head of its request is complete.
  void has_head(const void* connection);
  /// Called when its request is complete. A client that waits for the answer may already have closed its sending half.
  void has_request(const void* connection);
  /// Called when its request was answered or abandoned.
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
  std::mutex mutex_;  // guards the members below
  std::condition_variable stopping_;
  bool is_stopping_ = false;
  std::map<const void*, Place> places_;
  std::thread watcher_;
};

}  // namespace hybrid_rt::serve
