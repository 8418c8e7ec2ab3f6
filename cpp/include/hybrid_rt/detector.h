#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "hybrid_rt/bundle.h"
#include "hybrid_rt/class_names.h"
#include "hybrid_rt/detections.h"

// A detector for a service: a bundle with worker threads, a bounded queue and deadlines.

namespace hybrid_rt {

struct DetectorOptions {
  /// How the bundle is loaded. `threads` are those of one worker (0: the machine's, shared out among the workers);
  /// `concurrency` is set to `workers`. With `warm_up` each size is run before the detector is ready, and the largest
  /// batch too: a bundle that takes no batches fails then.
  LoadOptions load{};
  int workers = 1;
  /// Pictures that may wait; more are refused.
  std::size_t queue_capacity = 64;
  /// Pictures of one size bucket that may be run in one call. 1: each on its own.
  std::size_t max_batch = 1;
  /// How long the first picture of a batch may wait for others.
  std::chrono::microseconds max_delay{0};
  /// Pictures whose height and width, rounded up to multiples of this, are the same may share a batch. Detectors pad
  /// the pictures of a batch to one size, which can change the last digits of what they find.
  std::int64_t size_bucket = 64;
};

/// Why a detector takes no more now.
class BusyError : public Error {
 public:
  BusyError(const std::string& expected, const std::string& got, std::chrono::seconds retry_after);

  /// When to come again; at least a second.
  std::chrono::seconds retry_after() const noexcept { return retry_after_; }

 private:
  std::chrono::seconds retry_after_;
};

/// Seconds of each step of one picture.
struct DetectTiming {
  double queue = 0;   ///< until a worker took it
  double decode = 0;  ///< making the detector's input of it
  double run = 0;     ///< the detector, for the whole batch
};

struct DetectResult {
  Detections detections;
  std::int64_t height = 0;
  std::int64_t width = 0;
  std::size_t batch = 1;  ///< pictures in the call
  DetectTiming timing;
  /// Of the bundle that found them, which a reload may have replaced since; never null in a result.
  std::shared_ptr<const ClassNames> class_names{};
};

/// A result, or what was thrown instead: an Error, of kDeadline if the deadline passed first.
struct DetectOutcome {
  DetectResult result{};
  std::exception_ptr error{};
};

struct DetectRequest {
  /// Makes the picture, in a worker's thread: uint8 [H, W, 3] RGB, or float32 [3, H, W] in 0..1, on the CPU. May throw.
  std::function<at::Tensor()> pixels;
  /// Its (height, width), by which pictures are batched. Without, it runs alone.
  std::optional<std::pair<std::int64_t, std::int64_t>> size{};
  std::optional<std::chrono::steady_clock::time_point> deadline{};
  /// Called once, in a worker's thread, and must not throw.
  std::function<void(DetectOutcome)> done;
};

struct DetectorStatus {
  std::size_t queued = 0;                           ///< pictures that wait
  std::size_t running = 0;                          ///< pictures in the workers
  std::vector<EngineChoice> engines{};              ///< of what is loaded now
  std::uint64_t loads = 0;                          ///< how often the bundle was loaded
  std::shared_ptr<const ClassNames> class_names{};  ///< of what is loaded now; never null
};

/// Owns a bundle, its workers and its limits. All methods may be called from several threads.
///
/// The destructor and stop() wait for the workers, so neither may run in one of them: the functions of a DetectRequest
/// (`pixels`, `done`) must not call stop(), and must not hold the last owner of their Detector, e.g. a shared_ptr that
/// everybody else has let go of. The worker would wait for itself.
class Detector {
 public:
  /// Loads the bundle, warms it up and starts the workers. Throws Error, of kOption for a number that can't be.
  explicit Detector(std::string path, const DetectorOptions& options = {});
  Detector(const Detector&) = delete;
  Detector& operator=(const Detector&) = delete;
  /// stop().
  ~Detector();

  /// Waits for a worker and for the result. Throws Error: kBusy (BusyError) if it is not taken, kDeadline if the
  /// deadline passed, kInput for a picture that the detector does not take, kBackend if it fails.
  DetectResult detect(const at::Tensor& pixels,
                      std::optional<std::chrono::steady_clock::time_point> deadline = std::nullopt);

  /// Takes all of the requests, or none: throws BusyError if they do not fit into the queue, if the first of them could
  /// not be done before its deadline by what pictures took lately, or after stop().
  void submit(std::vector<DetectRequest> requests);

  /// Loads the file anew and lets go of what was loaded before, once no worker needs it. No request is lost; if the
  /// file can't be loaded, Error is thrown and what was loaded goes on.
  void reload();

  /// Takes no more, and returns when all that was taken is done.
  void stop();

  DetectorStatus status() const;
  const std::string& path() const;

 private:
  class Workers;
  std::unique_ptr<Workers> workers_;
};

}  // namespace hybrid_rt
