#include "hybrid_rt/detector.h"

#include <ATen/Parallel.h>
#include <c10/core/InferenceMode.h>

#include <algorithm>
#include <future>
#include <mutex>
#include <span>
#include <thread>

#include "engine/devices.h"
#include "hybrid_rt/log.h"
#include "hybrid_rt/message.h"
#include "service/request_queue.h"

namespace hybrid_rt {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

DetectorOptions checked(DetectorOptions options) {
  const auto require = [](bool holds, const char* name, const char* expected, const std::string& got) {
    if (!holds) throw Error(ErrorKind::kOption, "detector", name, expected, got, "");
  };
  require(options.workers >= 1 && options.workers <= 1024, "workers", "1 to 1024", std::to_string(options.workers));
  require(options.queue_capacity >= 1, "queue_capacity", "1 or more", std::to_string(options.queue_capacity));
  require(options.max_batch >= 1, "max_batch", "1 or more", std::to_string(options.max_batch));
  require(options.size_bucket >= 1, "size_bucket", "1 or more", std::to_string(options.size_bucket));
  require(options.max_delay.count() >= 0, "max_delay", "0 or more", std::to_string(options.max_delay.count()) + " us");
  if (options.load.threads == 0) {
    options.load.threads = std::max(1, static_cast<int>(std::thread::hardware_concurrency()) / options.workers);
  }
  options.load.device = with_index(options.load.device);
  options.load.concurrency = options.workers;
  options.load.pin_threads = true;  // a detector does not work in a forked process anyway
  return options;
}

/// One load of a bundle. A reload creates another one.
struct Loaded {
  torch::jit::Module module;
  std::vector<EngineChoice> engines;
  std::shared_ptr<const ClassNames> class_names;
};

c10::IValue run(torch::jit::Module& module, const std::vector<at::Tensor>& images, c10::Device device) {
  c10::IValue output = module.forward({c10::List<at::Tensor>(c10::ArrayRef<at::Tensor>(images))});
  wait_for(device);
  return output;
}

/// Runs the largest batch, because only a run shows whether batches work: segments may be compiled for one image.
void run_largest_batch(torch::jit::Module& module, const DetectorOptions& options) {
  if (options.max_batch == 1) return;
  const c10::InferenceMode inference;
  for (const auto& [height, width] : options.load.warm_up) {
    const at::Tensor image = at::zeros({3, height, width}, at::TensorOptions(options.load.device));
    try {
      run(module, std::vector<at::Tensor>(options.max_batch, image), options.load.device);
    } catch (const std::exception& error) {
      throw Error(ErrorKind::kOption, "detector", "max_batch " + std::to_string(options.max_batch),
                  "a bundle that accepts batches of this size", "\"" + message_of(error, "detector", "forward") + "\"",
                  "Convert it with shapes= of larger batches, or leave max_batch at 1.");
    }
  }
}

std::shared_ptr<Loaded> load_warm(const std::string& path, const DetectorOptions& options) {
  at::set_num_threads(options.load.threads);  // so that the warm-up runs like the workers
  auto loaded = std::make_shared<Loaded>();
  loaded->module = load(path, options.load);
  require_picture_input(loaded->module);
  loaded->engines = engines(loaded->module);
  loaded->class_names = std::make_shared<const ClassNames>(class_names(loaded->module));
  run_largest_batch(loaded->module, options);
  return loaded;
}

/// Loads in a separate thread, because torch's number of threads is a property of the thread, and the caller's must not
/// change.
std::shared_ptr<Loaded> load_aside(const std::string& path, const DetectorOptions& options) {
  return std::async(std::launch::async, load_warm, path, options).get();
}

/// An image that a worker is processing.
struct Job {
  RequestQueue::QueuedRequest queued;
  at::Tensor image{};
  DetectResult result{};

  const DetectRequest& request() const { return queued.request; }
  void fail(std::exception_ptr error) { request().done({{}, std::move(error)}); }
  bool is_late() const { return request().deadline && Clock::now() > *request().deadline; }
};

std::exception_ptr too_late(const std::string& got) {
  return std::make_exception_ptr(Error(ErrorKind::kDeadline, "detector", "request", "to be done before its deadline",
                                       got, "Allow more time, or send fewer images at once."));
}

}  // namespace

class Detector::Workers {
 public:
  Workers(std::string path, const DetectorOptions& options)
      : path_(std::move(path)), options_(checked(options)), queue_(options_), loaded_(load_aside(path_, options_)) {
    try {
      for (int i = 0; i < options_.workers; ++i) threads_.emplace_back([this] { work(); });
    } catch (...) {  // no more threads
      stop();
      throw;
    }
  }
  Workers(const Workers&) = delete;
  Workers& operator=(const Workers&) = delete;
  ~Workers() { stop(); }

  RequestQueue& queue() { return queue_; }
  const std::string& path() const { return path_; }

  void reload() {
    const std::lock_guard one_at_a_time(reloading_);
    auto next = load_aside(path_, options_);
    const std::lock_guard lock(mutex_);
    loaded_.swap(next);
    ++loads_;
  }

  void stop() {
    queue_.stop();
    const std::lock_guard lock(stopping_);
    for (std::thread& thread : threads_) {
      if (thread.joinable()) thread.join();
    }
  }

  DetectorStatus status() const {
    const std::lock_guard lock(mutex_);
    return {queue_.length(), queue_.running(), loaded_->engines, loads_, loaded_->class_names};
  }

 private:
  std::shared_ptr<Loaded> loaded() const {
    const std::lock_guard lock(mutex_);
    return loaded_;
  }

  void work() {
    at::set_num_threads(options_.load.threads);
    const c10::InferenceMode inference;
    while (true) {
      RequestQueue::Batch batch = queue_.take();
      if (batch.ready.empty() && batch.late.empty()) return;
      for (auto& late : batch.late) Job{std::move(late)}.fail(too_late("too little time left when its turn came"));
      if (batch.ready.empty()) continue;
      const std::size_t images = batch.ready.size();
      const auto start = Clock::now();
      answer(std::move(batch.ready));
      queue_.done(images, Clock::now() - start);
    }
  }

  void answer(std::vector<RequestQueue::QueuedRequest> batch) {
    std::vector<Job> jobs;
    for (auto& queued : batch) {
      Job job{std::move(queued)};
      job.result.timing.queue = seconds_since(job.queued.since);
      if (decode(job)) jobs.push_back(std::move(job));
    }
    if (jobs.empty()) return;
    const auto current = loaded();
    if (jobs.size() > 1 && run_jobs(*current, jobs, /*report=*/false)) return;
    // Runs them one by one, also after a failed batch, so that one bad image does not make the others fail.
    for (Job& job : jobs) run_jobs(*current, {&job, 1}, /*report=*/true);
  }

  bool decode(Job& job) const {
    const auto start = Clock::now();
    try {
      job.image = to_image(job.request().pixels(), options_.load.device);
      job.result.height = job.image.size(1);
      job.result.width = job.image.size(2);
    } catch (...) {
      job.fail(std::current_exception());
      return false;
    }
    job.result.timing.decode = seconds_since(start);
    return true;
  }

  /// Runs the jobs in one call and answers them. If the call fails, answers them with the error if `report`. Returns
  /// true on success.
  bool run_jobs(Loaded& current, std::span<Job> jobs, bool report) const {
    std::vector<Detections> found;
    const auto start = Clock::now();
    try {
      std::vector<at::Tensor> images;
      for (const Job& job : jobs) images.push_back(job.image);
      found = detections_from(run(current.module, images, options_.load.device), images.size());
    } catch (const std::exception& error) {
      const Error failure = as_error(error, ErrorKind::kBackend, "detector", "forward");
      if (report) {
        for (Job& job : jobs) job.fail(std::make_exception_ptr(failure));
      } else {
        log(LogLevel::kWarning, "a batch of " + std::to_string(jobs.size()) + " failed: " + failure.what());
      }
      return false;
    }
    const double took = seconds_since(start);
    for (std::size_t i = 0; i < jobs.size(); ++i) {
      Job& job = jobs[i];
      job.result.timing.run = took;
      job.result.batch = jobs.size();
      job.result.detections = std::move(found[i]);
      job.result.class_names = current.class_names;
      if (job.is_late()) {
        job.fail(too_late("a result after it"));
      } else {
        job.request().done({std::move(job.result), nullptr});
      }
    }
    return true;
  }

  const std::string path_;
  const DetectorOptions options_;
  RequestQueue queue_;
  std::mutex reloading_;
  std::mutex stopping_;
  mutable std::mutex mutex_;  // guards the loaded bundle
  std::shared_ptr<Loaded> loaded_;
  std::uint64_t loads_ = 1;
  std::vector<std::thread> threads_;
};

Detector::Detector(std::string path, const DetectorOptions& options)
    : workers_(std::make_unique<Workers>(std::move(path), options)) {}

Detector::~Detector() = default;

DetectResult Detector::detect(const at::Tensor& pixels, std::optional<Clock::time_point> deadline) {
  auto promise = std::make_shared<std::promise<DetectOutcome>>();
  std::vector<DetectRequest> requests(1);
  requests[0].pixels = [pixels] { return pixels; };
  if (pixels.defined() && pixels.dim() == 3) {
    const bool channels_first = pixels.scalar_type() == at::kFloat;
    requests[0].size = {pixels.size(channels_first ? 1 : 0), pixels.size(channels_first ? 2 : 1)};
  }
  requests[0].deadline = deadline;
  requests[0].done = [promise](DetectOutcome outcome) { promise->set_value(std::move(outcome)); };
  submit(std::move(requests));
  DetectOutcome outcome = promise->get_future().get();
  if (outcome.error) std::rethrow_exception(outcome.error);
  return std::move(outcome.result);
}

void Detector::submit(std::vector<DetectRequest> requests) { workers_->queue().push(std::move(requests)); }

void Detector::reload() { workers_->reload(); }

void Detector::stop() { workers_->stop(); }

DetectorStatus Detector::status() const { return workers_->status(); }

const std::string& Detector::path() const { return workers_->path(); }

}  // namespace hybrid_rt
