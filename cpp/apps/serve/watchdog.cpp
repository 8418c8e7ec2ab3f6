#include "watchdog.h"

#include <algorithm>
#include <set>
#include <utility>
#include <vector>

namespace hybrid_rt::serve {

Watchdog::Watchdog(Options options) : options_(std::move(options)) {
  if (options_.limit.count() > 0) watcher_ = std::thread([this] { watch(); });
}

Watchdog::~Watchdog() {
  {
    const std::lock_guard lock(mutex_);
    is_stopping_ = true;
    changed_.notify_all();
  }
  if (watcher_.joinable()) watcher_.join();
}

std::uint64_t Watchdog::begin(const std::string& model, std::function<void()> give_up) {
  const std::lock_guard lock(mutex_);
  images_.emplace(++last_, Image{model, std::this_thread::get_id(), Clock::now() + options_.limit, std::move(give_up)});
  changed_.notify_all();
  return last_;
}

void Watchdog::end(std::uint64_t ticket) {
  std::function<void()> dropped;  // destroyed outside the lock, because it may own the request
  const std::lock_guard lock(mutex_);
  const auto found = images_.find(ticket);
  if (found == images_.end()) return;
  dropped.swap(found->second.give_up);
  images_.erase(found);
}

bool Watchdog::are_all_stuck(const std::string& model) const {
  std::set<std::thread::id> stuck;  // a worker may hold several tickets of one batch
  for (const auto& [ticket, image] : images_) {
    if (image.is_stuck && image.model == model) stuck.insert(image.worker);
  }
  return stuck.size() >= static_cast<std::size_t>(options_.workers);
}

void Watchdog::watch() {
  std::unique_lock lock(mutex_);
  while (!is_stopping_) {
    const auto now = Clock::now();
    auto next = now + std::chrono::hours(1);
    std::vector<std::function<void()>> given_up;
    std::string model;
    bool is_over = false;
    for (auto& [ticket, image] : images_) {
      if (image.is_stuck) continue;
      if (image.until > now) {
        next = std::min(next, image.until);
        continue;
      }
      image.is_stuck = true;
      given_up.push_back(std::move(image.give_up));
      model = image.model;
      is_over = is_over || are_all_stuck(model);
    }
    if (given_up.empty()) {
      changed_.wait_until(lock, next);
      continue;
    }
    lock.unlock();
    for (const auto& give_up : given_up) give_up();
    if (is_over && options_.all_stuck) options_.all_stuck(model);
    given_up.clear();
    lock.lock();
  }
}

}  // namespace hybrid_rt::serve
