#include "service/request_queue.h"

#include <algorithm>
#include <cmath>

namespace hybrid_rt {
namespace {

using std::chrono::seconds;

std::int64_t rounded_up(std::int64_t size, std::int64_t step) { return (size + step - 1) / step; }

std::string milliseconds(std::chrono::duration<double> time) {
  return std::to_string(std::llround(time.count() * 1000)) + " ms";
}

}  // namespace

BusyError::BusyError(const std::string& expected, const std::string& got, seconds retry_after)
    : Error(ErrorKind::kBusy, "detector", "request", expected, got,
            "Retry in " + std::to_string(retry_after.count()) + " s, or add workers."),
      retry_after_(retry_after) {}

RequestQueue::Seconds RequestQueue::expected(Clock::time_point now) const {
  // Without this, one slow image could cause all requests to be refused that would show that runs are fast again.
  const Seconds forgotten = std::max(Seconds(1), 4 * typical_);
  return now - last_done_ < forgotten ? typical_ : Seconds(0);
}

void RequestQueue::push(std::vector<DetectRequest> requests) {
  const std::lock_guard lock(mutex_);
  const auto now = Clock::now();
  const Seconds each = expected(now);
  const Seconds wait = each * (static_cast<double>(waiting_.size()) + static_cast<double>(running_) / 2) /
                       static_cast<double>(options_.workers);
  const seconds retry_after(std::max<std::int64_t>(1, std::llround(std::ceil(wait.count()))));
  if (stopped_) throw BusyError("a detector that takes requests", "one that is stopping", retry_after);
  if (waiting_.size() + requests.size() > options_.queue_capacity) {
    throw BusyError(
        "room for " + std::to_string(requests.size()) + " in the queue of " + std::to_string(options_.queue_capacity),
        std::to_string(waiting_.size()) + " that wait", retry_after);
  }
  const bool is_idle = waiting_.empty() && running_ < static_cast<std::size_t>(options_.workers);
  for (const DetectRequest& request : requests) {
    if (!request.deadline || is_idle) continue;
    if (now + wait + each > *request.deadline) {
      throw BusyError(
          "a deadline that can be met",
          milliseconds(*request.deadline - now) + " where about " + milliseconds(wait + each) + " are needed",
          retry_after);
    }
  }
  for (DetectRequest& request : requests) waiting_.push_back({std::move(request), now});
  changed_.notify_all();
}

void RequestQueue::take_late(Clock::time_point now, std::vector<QueuedRequest>& late) {
  const Seconds each = expected(now);
  for (auto it = waiting_.begin(); it != waiting_.end();) {
    // Only the next image must be able to meet its deadline: the ones behind it wait longer, and are checked later.
    const Seconds needed = it == waiting_.begin() ? each : Seconds(0);
    const bool is_late = it->request.deadline && now + needed > *it->request.deadline;
    if (is_late) late.push_back(std::move(*it));
    it = is_late ? waiting_.erase(it) : std::next(it);
  }
}

bool RequestQueue::share_a_bucket(const DetectRequest& a, const DetectRequest& b) const {
  if (!a.size || !b.size) return false;
  const std::int64_t step = options_.size_bucket;
  return rounded_up(a.size->first, step) == rounded_up(b.size->first, step) &&
         rounded_up(a.size->second, step) == rounded_up(b.size->second, step);
}

void RequestQueue::fill(std::vector<QueuedRequest>& batch) {
  for (auto it = waiting_.begin(); it != waiting_.end() && batch.size() < options_.max_batch;) {
    const bool fits = share_a_bucket(batch.front().request, it->request);
    if (fits) batch.push_back(std::move(*it));
    it = fits ? waiting_.erase(it) : std::next(it);
  }
}

RequestQueue::Batch RequestQueue::take() {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [this] { return stopped_ || !waiting_.empty(); });
  Batch batch;
  take_late(Clock::now(), batch.late);
  if (waiting_.empty()) return batch;
  batch.ready.push_back(std::move(waiting_.front()));
  waiting_.pop_front();
  fill(batch.ready);
  const auto until = batch.ready.front().since + options_.max_delay;
  while (batch.ready.size() < options_.max_batch && batch.ready.front().request.size && !stopped_) {
    if (changed_.wait_until(lock, until) == std::cv_status::timeout) break;
    fill(batch.ready);
  }
  running_ += batch.ready.size();
  return batch;
}

void RequestQueue::done(std::size_t images, Clock::duration took) {
  const std::lock_guard lock(mutex_);
  running_ -= images;
  last_done_ = Clock::now();
  const Seconds each = Seconds(took) / static_cast<double>(images);
  // A moving average of the last few images. The first one counts fully.
  typical_ = typical_.count() > 0 ? typical_ * 0.8 + each * 0.2 : each;
}

void RequestQueue::stop() {
  const std::lock_guard lock(mutex_);
  stopped_ = true;
  changed_.notify_all();
}

std::size_t RequestQueue::length() const {
  const std::lock_guard lock(mutex_);
  return waiting_.size();
}

std::size_t RequestQueue::running() const {
  const std::lock_guard lock(mutex_);
  return running_;
}

}  // namespace hybrid_rt
