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
/// Options of a Detector.
struct DetectorOptions {
  /// Load options of the bundle. `threads` is per worker (0: the machine's, divided among the workers);
  /// `concurrency` is set to `workers`, and `pin_threads` to true. With `warm_up` each size is run before the detector
  /// is ready, and the largest batch too: a bundle that takes no batches fails then.
  LoadOptions load{};
  int workers = 1;  ///< number of worker threads, at least 1
  /// Number of images that may wait; more are refused.
  std::size_t queue_capacity = 64;
  /// Maximum number of images of one size bucket per call. 1: no batches.
  std::size_t max_batch = 1;
  /// Time that the first image of a batch may wait for others.
  std::chrono::microseconds max_delay{0};
  /// Granularity of sizes in pixels: images whose height and width, rounded up to multiples of it, are equal may share
  /// a batch. Detectors pad the images of a batch to one size, which can change the last digits of the results.
  std::int64_t size_bucket = 64;
};

/// The error (kBusy) of a detector that accepts no requests now.
class BusyError : public Error {
 public:
  BusyError(const std::string& expected, const std::string& got, std::chrono::seconds retry_after);  ///< Creates it.

  /// Returns the time after which to try again, at least one second.
  std::chrono::seconds retry_after() const noexcept { return retry_after_; }

 private:
  std::chrono::seconds retry_after_;
};

/// Durations of the steps for one image, in seconds.
struct DetectTiming {
  double queue = 0;   ///< wait until a worker took it
  double decode = 0;  ///< conversion to the detector's input
  double run = 0;     ///< run of the detector, for the whole batch
};
/// Result for one image.
struct DetectResult {
  Detections detections;    ///< the objects in the image
  std::int64_t height = 0;  ///< height of the image in pixels
  std::int64_t width = 0;   ///< width of the image in pixels
  std::size_t batch = 1;    ///< number of images in the call
  DetectTiming timing;      ///< durations of the steps
  /// Class names of the bundle that computed the result, even if it was reloaded since; never null in a result.
  std::shared_ptr<const ClassNames> class_names{};
};

/// A result or an exception: an Error, of kDeadline if the deadline passed first.
struct DetectOutcome {
  DetectResult result{};       ///< the result, if `error` is null
  std::exception_ptr error{};  ///< the exception, or null
};
/// One image for Detector::submit().
struct DetectRequest {
  /// Creates the image, in a worker's thread: uint8 [H, W, 3] RGB, or float32 [3, H, W] in 0..1, on the CPU. May throw.
  std::function<at::Tensor()> pixels;
  /// (height, width) of the image, used for batching. Without it, the image runs alone.
  std::optional<std::pair<std::int64_t, std::int64_t>> size{};
  std::optional<std::chrono::steady_clock::time_point> deadline{};  ///< time after which no result is wanted
  /// Called once, in a worker's thread, and must not throw.
  std::function<void(DetectOutcome)> done;
};
/// State of a Detector.
struct DetectorStatus {
  std::size_t queued = 0;                           ///< number of waiting images
  std::size_t running = 0;                          ///< number of images in the workers
  std::vector<EngineChoice> engines{};              ///< engines of the current bundle
  std::uint64_t loads = 0;                          ///< number of times the bundle was loaded
  std::shared_ptr<const ClassNames> class_names{};  ///< names of the current bundle; never null
};

/// Owns a bundle, its workers and its limits. All methods may be called from several threads.
///
/// The destructor and stop() wait for the workers, so neither may run in one of them: the functions of a DetectRequest
/// (`pixels`, `done`) must not call stop(), and must not hold the last owner of their Detector, e.g. a shared_ptr that
/// everybody else has released. The worker would wait for itself.
class Detector {
 public:
  /// Loads the bundle, warms it up and starts the workers. Throws Error, of kOption for a number out of range.
  explicit Detector(std::string path, const DetectorOptions& options = {});
  Detector(const Detector&) = delete;
  Detector& operator=(const Detector&) = delete;
  /// Calls stop().
  ~Detector();

  /// Runs one image and waits for the result. Throws Error: kBusy (BusyError) if it is refused, kDeadline if the
  /// deadline passed, kInput for an image that the detector does not accept, kBackend if it fails.
  DetectResult detect(const at::Tensor& pixels,
                      std::optional<std::chrono::steady_clock::time_point> deadline = std::nullopt);

  /// Takes all of the requests, or none: throws BusyError if they do not fit into the queue, if the first of them could
  /// not meet its deadline, judged by recent processing times, or after stop().
  void submit(std::vector<DetectRequest> requests);

  /// Reloads the file and releases the previous bundle once no worker needs it. No request is lost. If the file can't
  /// be loaded, throws Error and keeps the previous bundle.
  void reload();

  /// Refuses new requests, and returns when all accepted ones are done.
  void stop();

  DetectorStatus status() const;    ///< Returns the current state.
  const std::string& path() const;  ///< Returns the path of the bundle.

 private:
  class Workers;
  std::unique_ptr<Workers> workers_;
};

}  // namespace hybrid_rt
