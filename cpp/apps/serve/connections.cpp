#include "connections.h"

#include <sys/socket.h>

namespace hybrid_rt::serve {
namespace {

constexpr std::chrono::milliseconds kEvery{250};

bool has_left(int descriptor) {
  char byte = 0;
  return ::recv(descriptor, &byte, 1, MSG_PEEK | MSG_DONTWAIT) == 0;
}

/// After this, the event loop sees the end of the connection and closes it.
void end(int descriptor) { ::shutdown(descriptor, SHUT_RDWR); }

}  // namespace

Connections::Connections(const Limits& limits) : limits_(limits), watcher_([this] { watch(); }) {}

Connections::~Connections() {
  {
    const std::lock_guard lock(mutex_);
    is_stopping_ = true;
  }
  stopping_.notify_all();
  watcher_.join();
}

void Connections::opened(const void* connection, int descriptor) {
  const std::lock_guard lock(mutex_);
  places_[connection] = {.descriptor = descriptor, .reads = Reads::kHead, .until = Clock::now() + limits_.head};
  if (places_.size() > limits_.most) close_one_before(connection);
}

void Connections::closed(const void* connection) {
  const std::lock_guard lock(mutex_);
  places_.erase(connection);
}

void Connections::has_head(const void* connection) {
  const std::lock_guard lock(mutex_);
  places_[connection].reads = Reads::kBody;
}

void Connections::has_request(const void* connection) {
  const std::lock_guard lock(mutex_);
  places_[connection].reads = Reads::kNothing;
}

void Connections::is_done(const void* connection) {
  const std::lock_guard lock(mutex_);
  Place& place = places_[connection];
  place.reads = Reads::kHead;
  place.until = Clock::now() + limits_.idle;
}

void Connections::watch() {
  std::unique_lock lock(mutex_);
  while (!stopping_.wait_for(lock, kEvery, [this] { return is_stopping_; })) close_late(Clock::now());
}

void Connections::close_late(Clock::time_point now) {
  for (auto& [connection, place] : places_) {
    if (place.reads == Reads::kNothing) continue;
    const bool is_late = place.reads == Reads::kHead && now > place.until;
    if (is_late || has_left(place.descriptor)) end(place.descriptor);
  }
}

void Connections::close_one_before(const void* newest) {
  Place* oldest = nullptr;
  for (auto& [connection, place] : places_) {
    if (connection == newest || place.reads != Reads::kHead) continue;
    if (oldest == nullptr || place.until < oldest->until) oldest = &place;
  }
  if (oldest == nullptr) return;
  end(oldest->descriptor);
  oldest->reads = Reads::kNothing;  // so that it is not chosen again
}

}  // namespace hybrid_rt::serve
