#include "context_pool.h"

#include <algorithm>
#include <utility>

#include "cuda.h"

namespace hybrid_rt::tensorrt {

PooledContext::~PooledContext() {
  try {
    if (context) done.synchronize();
  } catch (...) {  // the device is lost; there is nothing to wait for
  }
}

ContextPool::Lease::~Lease() {
  if (!context_) return;
  try {
    context_->stream = stream_.id();
    context_->done.record(stream_);
  } catch (...) {  // the device or its memory is lost: the contents of the stream are unknown
    discard();
    return;
  }
  pool_.give_back(std::move(context_));
}

void ContextPool::Lease::discard() {
  try {
    context_->done.record(stream_);  // the vendor may have launched a part of the call
  } catch (...) {                    // as above
  }
  pool_.forget(context_->profile);
  context_.reset();
}

ContextPool::Lease ContextPool::lease(size_t profile, c10::Stream stream) {
  std::unique_lock lock(mutex_);
  if (made_.size() <= profile) made_.resize(profile + 1);
  while (true) {
    const bool may_make = made_[profile] < kMaxContexts;
    if (auto context = take_idle(profile, stream, /*may_wait_on_device=*/!may_make)) {
      return Lease(*this, std::move(context), stream);
    }
    if (may_make) break;
    returned_.wait(lock);
  }
  ++made_[profile];
  lock.unlock();
  try {
    return Lease(*this, make(profile, stream), stream);
  } catch (...) {
    forget(profile);
    throw;
  }
}

std::unique_ptr<PooledContext> ContextPool::make(size_t profile, c10::Stream stream) const {
  auto context = std::make_unique<PooledContext>(device_);
  context->profile = profile;
  Library::take_last_error();
  context->context = engine_.make_context(static_cast<int64_t>(profile), handle_of(stream));
  library_.require(context->context != nullptr, "execution context");
  context->done.record(stream);
  return context;
}

void ContextPool::clear() {
  std::list<std::unique_ptr<PooledContext>> dropped;  // destroyed without the lock, as they may have to wait
  const std::lock_guard lock(mutex_);
  for (const auto& context : idle_) --made_[context->profile];
  dropped.swap(idle_);
}

std::unique_ptr<PooledContext> ContextPool::take_idle(size_t profile, const c10::Stream& stream,
                                                      bool may_wait_on_device) {
  const auto is_of_profile = [&](const auto& context) { return context->profile == profile; };
  auto found = std::find_if(idle_.begin(), idle_.end(), [&](const auto& context) {
    return is_of_profile(context) && context->stream == stream.id();
  });
  if (found == idle_.end()) {
    found = std::find_if(idle_.begin(), idle_.end(),
                         [&](const auto& context) { return is_of_profile(context) && context->done.query(); });
  }
  if (found == idle_.end() && may_wait_on_device) {
    found = std::find_if(idle_.begin(), idle_.end(), is_of_profile);
    if (found != idle_.end()) (*found)->done.block(stream);  // the stream waits, not this thread
  }
  if (found == idle_.end()) return nullptr;
  std::unique_ptr<PooledContext> context = std::move(*found);
  idle_.erase(found);
  return context;
}

void ContextPool::give_back(std::unique_ptr<PooledContext> context) {
  {
    const std::lock_guard lock(mutex_);
    idle_.push_back(std::move(context));
  }
  returned_.notify_all();  // a single one might wait for a context of another profile and keep sleeping
}

void ContextPool::forget(size_t profile) {
  {
    const std::lock_guard lock(mutex_);
    --made_[profile];
  }
  returned_.notify_all();
}

}  // namespace hybrid_rt::tensorrt
