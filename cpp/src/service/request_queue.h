#pragma once

#include <chrono>
#include <condition_variable>
#include <deque>
#include <mutex>
#include <vector>

#include "hybrid_rt/detector.h"

namespace hybrid_rt {

/// The images that wait for a Detector's workers: bounded, first come first served, taken in batches.
class RequestQueue {
 public:
  using Clock = std::chrono::steady_clock;

  struct QueuedRequest {
    DetectRequest request;
    Clock::time_point since;
  };
  struct Batch {
    std::vector<QueuedRequest> ready;  ///< images to run together; if `late` is empty too, the queue has stopped
    std::vector<QueuedRequest> late;   ///< images whose deadline has passed, or would pass before they are done
  };

  explicit RequestQueue(const DetectorOptions& options) : options_(options) {}

  /// Adds all requests or none. Throws BusyError.
  void push(std::vector<DetectRequest> requests);

  /// Waits for the next batch. After stop(), returns what is left, then nothing.
  Batch take();

  /// Records the end of a batch and the time that a worker needed for it.
  void done(std::size_t images, Clock::duration took);

  void stop();

  std::size_t length() const;
  std::size_t running() const;

 private:
  using Seconds = std::chrono::duration<double>;

  /// Returns the recent processing time of an image; 0 if it is unknown, or too old to refuse anything.
  Seconds expected(Clock::time_point now) const;
  void take_late(Clock::time_point now, std::vector<QueuedRequest>& late);
  /// Moves the images that fit to the first one from the queue into the batch.
  void fill(std::vector<QueuedRequest>& batch);
  bool share_a_bucket(const DetectRequest& a, const DetectRequest& b) const;

  const DetectorOptions options_;
  mutable std::mutex mutex_;  // guards the members below
  std::condition_variable changed_;
  std::deque<QueuedRequest> waiting_;
  std::size_t running_ = 0;
  bool stopped_ = false;
  Seconds typical_{0};
  Clock::time_point last_done_{};
};

}  // namespace hybrid_rt
