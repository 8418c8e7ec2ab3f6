#include "gpu.h"

#include <algorithm>
#include <chrono>
#include <utility>

#include "gpu_state.h"

namespace emulated {
namespace {

thread_local int this_threads_device = 0;
thread_local bool this_thread_has_context = false;

void check_order(State& state, const Stream& stream, const Operation& operation, const Use& use) {
  Resource& resource = *use.resource;
  if (resource.is_released) {
    state.breaches.push_back(operation.name + " uses " + resource.name + ", which was released before");
    return;
  }
  for (const Resource::Past& past : resource.past) {
    if (!past.is_write && !use.is_write) continue;
    if (at(stream.clock, past.stream) >= past.tick) continue;
    state.breaches.push_back(operation.name + " in stream " + std::to_string(stream.number) +
                             (use.is_write ? " writes " : " reads ") + resource.name + " while " + past.operation +
                             " in stream " + std::to_string(past.stream) + " may still use it");
  }
}

}  // namespace

void merge(Clock& clock, const Clock& other) {
  if (clock.size() < other.size()) clock.resize(other.size());
  for (size_t i = 0; i < other.size(); ++i) clock[i] = std::max(clock[i], other[i]);
}

uint64_t at(const Clock& clock, size_t stream) { return stream < clock.size() ? clock[stream] : 0; }

State& State::instance() {
  static State* const state = new State();  // never destroyed, because streams' threads may outlive main
  return *state;
}

Stream::Stream(int device, size_t number, bool is_default)
    : device(device), number(number), is_default(is_default), thread_([this] { run(); }) {}

Stream::~Stream() {
  {
    const std::lock_guard lock(mutex_);
    is_ending_ = true;
  }
  changed_.notify_all();
  thread_.join();
}

void Stream::push(std::function<void()> work) {
  {
    const std::lock_guard lock(mutex_);
    queue_.push_back(std::move(work));
  }
  changed_.notify_all();
}

bool Stream::is_idle() {
  const std::lock_guard lock(mutex_);
  return queue_.empty() && !is_busy_;
}

void Stream::wait() {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [&] { return queue_.empty() && !is_busy_; });
}

void Stream::run() {
  std::unique_lock lock(mutex_);
  while (true) {
    changed_.wait(lock, [&] { return !queue_.empty() || is_ending_; });
    if (queue_.empty()) return;
    const std::function<void()> work = std::move(queue_.front());
    queue_.pop_front();
    is_busy_ = true;
    lock.unlock();
    work();
    lock.lock();
    is_busy_ = false;
    changed_.notify_all();
  }
}

void report_breach(const std::string& text) { Locked<State>()->breaches.push_back(text); }

std::vector<std::string> take_breaches() { return std::exchange(Locked<State>()->breaches, {}); }

void set_delay(int microseconds) { Locked<State>()->delay = microseconds; }

void set_device_count(int count) { Locked<State>()->devices = count; }

int device_count() { return Locked<State>()->devices; }

int current_device() { return this_threads_device; }

void set_current_device(int device) { this_threads_device = device; }

void make_context_current() { this_thread_has_context = true; }

bool has_current_context() { return this_thread_has_context; }

void set_lost(int device, bool is_lost) { Locked<State>()->lost[device] = is_lost; }

bool is_lost(int device) {
  State& state = State::instance();
  const std::lock_guard lock(state.mutex);
  const auto found = state.lost.find(device);
  return found != state.lost.end() && found->second;
}

ResourcePointer make_resource(const std::string& name) { return std::make_shared<Resource>(name); }

void require_idle(const ResourcePointer& resource, const std::string& what) {
  State& state = State::instance();
  const std::lock_guard lock(state.mutex);
  for (const Resource::Past& past : resource->past) {
    if (at(state.host, past.stream) >= past.tick) continue;
    if (state.lost[state.streams[past.stream]->device])
      continue;  // nothing runs there any more, and nobody can wait for it
    state.breaches.push_back(what + " while " + past.operation + " in stream " + std::to_string(past.stream) +
                             " may still use " + resource->name);
    return;
  }
}

void require_order(const ResourcePointer& resource, const Stream* stream, const std::string& what) {
  State& state = State::instance();
  const std::lock_guard lock(state.mutex);
  for (const Resource::Past& past : resource->past) {
    if (std::max(at(state.host, past.stream), at(stream->clock, past.stream)) >= past.tick) continue;
    state.breaches.push_back(what + " while " + past.operation + " in stream " + std::to_string(past.stream) +
                             " may still use " + resource->name);
    return;
  }
}

Stream* default_stream(int device) {
  State& state = State::instance();
  const std::lock_guard lock(state.mutex);
  Stream*& stream = state.default_streams[device];
  if (stream == nullptr) {
    state.streams.push_back(std::make_unique<Stream>(device, state.streams.size(), true));
    stream = state.streams.back().get();
  }
  return stream;
}

Stream* make_stream(int device) {
  State& state = State::instance();
  const std::lock_guard lock(state.mutex);
  state.streams.push_back(std::make_unique<Stream>(device, state.streams.size(), false));
  return state.streams.back().get();
}

void destroy(Stream* stream) {
  if (is_capturing(stream)) report_breach("a stream is destroyed while it is captured from");
  // Its number is not reused, because clocks refer to it.
}

int device_of(const Stream* stream) { return stream->device; }

Stream* stream_of(void* handle) {
  return handle != nullptr ? static_cast<Stream*>(handle) : default_stream(current_device());
}

void* handle_of(Stream* stream) { return stream->is_default ? nullptr : stream; }

void enqueue_locked(State& state, Stream& stream, const Operation& operation) {
  merge(stream.clock, state.host);
  if (stream.clock.size() <= stream.number) stream.clock.resize(stream.number + 1);
  for (const Use& use : operation.uses) check_order(state, stream, operation, use);
  const uint64_t tick = ++stream.clock[stream.number];
  for (const Use& use : operation.uses) {
    auto& past = use.resource->past;
    std::erase_if(past, [&](const Resource::Past& each) { return at(state.host, each.stream) >= each.tick; });
    past.push_back({stream.number, tick, use.is_write, operation.name});
  }
  const int delay =
      operation.is_delayed && state.delay > 0 ? std::uniform_int_distribution<int>(0, state.delay)(state.random) : 0;
  if (!operation.work) return;
  stream.push([work = operation.work, delay] {
    if (delay > 0) std::this_thread::sleep_for(std::chrono::microseconds(delay));
    work();
  });
}

void enqueue(Stream* stream, Operation operation) {
  State& state = State::instance();
  const std::lock_guard lock(state.mutex);
  if (stream->capture == nullptr) {
    enqueue_locked(state, *stream, operation);
    return;
  }
  if (stream->capturing_thread != std::this_thread::get_id()) {
    state.breaches.push_back(operation.name + " is put into a stream that another thread captures from");
  }
  stream->capture->operations.push_back(std::move(operation));
}

void synchronize(Stream* stream) {
  State& state = State::instance();
  Clock clock;
  {
    const std::lock_guard lock(state.mutex);
    if (Stream* captured = captured_by_this_thread(state)) break_capture(state, *captured, "waiting for a stream");
    clock = stream->clock;
  }
  stream->wait();
  const std::lock_guard lock(state.mutex);
  merge(state.host, clock);
}

bool query(Stream* stream) {
  State& state = State::instance();
  const std::lock_guard lock(state.mutex);
  if (!stream->is_idle()) return false;
  merge(state.host, stream->clock);
  return true;
}

void synchronize_all() {
  State& state = State::instance();
  std::vector<Stream*> streams;
  {
    const std::lock_guard lock(state.mutex);
    for (const auto& stream : state.streams) streams.push_back(stream.get());
  }
  for (Stream* stream : streams) synchronize(stream);
}

Event::Event() = default;
Event::~Event() = default;

void Event::record(Stream* stream) {
  State& state = State::instance();
  const std::lock_guard lock(state.mutex);
  mark_ = std::make_shared<Mark>(stream->device);
  if (stream->capture != nullptr) {
    break_capture(state, *stream, "recording an event");
    return;
  }
  enqueue_locked(state, *stream, {"an event", {}, [mark = mark_] {
                                    const std::lock_guard done(mark->mutex);
                                    mark->is_done = true;
                                    mark->changed.notify_all();
                                  }});
  mark_->clock = stream->clock;
}

void Event::block(Stream* stream) const {
  if (mark_ == nullptr) return;
  State& state = State::instance();
  const std::lock_guard lock(state.mutex);
  if (stream->capture != nullptr) {
    break_capture(state, *stream, "waiting for an event");
    return;
  }
  merge(stream->clock, mark_->clock);
  enqueue_locked(state, *stream, {"a wait", {}, [mark = mark_] {
                                    std::unique_lock done(mark->mutex);
                                    mark->changed.wait(done, [&] { return mark->is_done; });
                                  }});
}

bool Event::query() const {
  if (mark_ == nullptr) return true;
  State& state = State::instance();
  const std::lock_guard lock(state.mutex);
  if (Stream* captured = captured_by_this_thread(state)) break_capture(state, *captured, "asking an event");
  const std::lock_guard done(mark_->mutex);
  if (mark_->is_done) merge(state.host, mark_->clock);
  return mark_->is_done;
}

void Event::synchronize() const {
  if (mark_ == nullptr) return;
  State& state = State::instance();
  {
    const std::lock_guard lock(state.mutex);
    if (Stream* captured = captured_by_this_thread(state)) break_capture(state, *captured, "waiting for an event");
  }
  {
    std::unique_lock done(mark_->mutex);
    mark_->changed.wait(done, [&] { return mark_->is_done; });
  }
  const std::lock_guard lock(state.mutex);
  merge(state.host, mark_->clock);
}

}  // namespace emulated
