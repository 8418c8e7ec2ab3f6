#pragma once

#include <chrono>
#include <condition_variable>
#include <deque>
#include <mutex>
#include <vector>

#include "hybrid_rt/detector.h"

namespace hybrid_rt {

/// The pictures that wait for a Detector's workers: bounded, in the order of their coming, taken in batches.
class RequestQueue {
 public:
  using Clock = std::chrono::steady_clock;

  struct Waiting {
    DetectRequest request;
    Clock::time_point since;
  };
  struct Taken {
    std::vector<Waiting> batch;  ///< to be run together; empty with `late` empty: the queue has stopped
    std::vector<Waiting> late;   ///< their deadline has passed, or would before they were done
  };

  explicit RequestQueue(const DetectorOptions& options) : options_(options) {}

  /// All or none. Throws BusyError.
  void push(std::vector<DetectRequest> requests);

  /// Waits for the next batch. After stop() what is left, then nothing.
  Taken take();

  /// Says that a batch is done, and how long a worker had it.
  void done(std::size_t pictures, Clock::duration took);

  void stop();

  std::size_t length() const;
  std::size_t running() const;

 private:
  using Seconds = std::chrono::duration<double>;

  /// What a picture took lately; 0 if that is not known, or too long ago to refuse anything by it.
  Seconds expected(Clock::time_point now) const;
  void take_late(Clock::time_point now, std::vector<Waiting>& late);
  /// Moves those that fit to the first one out of the queue.
  void fill(std::vector<Waiting>& batch);
  bool share_a_bucket(const DetectRequest& a, const DetectRequest& b) const;

  const DetectorOptions options_;
  mutable std::mutex mutex_;  // guards what follows
  std::condition_variable changed_;
  std::deque<Waiting> waiting_;
  std::size_t running_ = 0;
  bool stopped_ = false;
  Seconds typical_{0};
  Clock::time_point last_done_{};
};

}  // namespace hybrid_rt
