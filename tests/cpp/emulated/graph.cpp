#include <utility>

#include "gpu.h"
#include "gpu_state.h"

namespace emulated {

Stream* captured_by_this_thread(State& state) {
  for (const auto& stream : state.streams) {
    if (stream->capture != nullptr && stream->capturing_thread == std::this_thread::get_id()) return stream.get();
  }
  return nullptr;
}

void break_capture(State& state, Stream& stream, const std::string& what) {
  state.breaches.push_back(what + " is not allowed during a capture");
  stream.is_capture_valid = false;
}

bool is_capturing(const Stream* stream) {
  State& state = State::instance();
  const std::lock_guard lock(state.mutex);
  return stream->capture != nullptr;
}

Result begin_capture(Stream* stream) {
  State& state = State::instance();
  const std::lock_guard lock(state.mutex);
  if (stream->is_default) return kCaptureUnsupported;
  if (stream->capture != nullptr) return kInvalidValue;
  stream->capture = std::make_unique<Graph>();
  stream->capture->device = stream->device;
  stream->capturing_thread = std::this_thread::get_id();
  stream->is_capture_valid = !std::exchange(state.is_next_capture_invalid, false);
  return kSuccess;
}

Result end_capture(Stream* stream, Graph** graph) {
  State& state = State::instance();
  const std::lock_guard lock(state.mutex);
  *graph = nullptr;
  if (stream->capture == nullptr) return kInvalidValue;
  if (stream->capturing_thread != std::this_thread::get_id()) return kCaptureWrongThread;
  const std::unique_ptr<Graph> captured = std::move(stream->capture);
  if (!stream->is_capture_valid) return kCaptureInvalidated;
  ++state.live_graphs;
  *graph = new Graph(*captured);
  return kSuccess;
}

void invalidate_next_capture() { Locked<State>()->is_next_capture_invalid = true; }

Graph* instantiate(Graph* graph) {
  State& state = State::instance();
  const std::lock_guard lock(state.mutex);
  auto executable = std::make_unique<Graph>(*graph);
  executable->is_executable = true;
  executable->itself = make_resource("a graph");
  ++state.live_graphs;
  return executable.release();
}

void destroy(Graph* graph) {
  if (graph->is_executable) require_idle(graph->itself, "a graph is destroyed");
  State& state = State::instance();
  const std::lock_guard lock(state.mutex);
  --state.live_graphs;
  delete graph;
}

Result launch(Graph* graph, Stream* stream) {
  State& state = State::instance();
  const std::lock_guard lock(state.mutex);
  if (!graph->is_executable) return kInvalidValue;
  if (graph->device != stream->device) {
    state.breaches.push_back("a graph of another device is launched");
    return kInvalidValue;
  }
  ++state.launches;
  // The driver itself serialises launches of one graph, and their reads and writes are checked below. This use only
  // determines how long the graph must live.
  enqueue_locked(state, *stream, {"the launch of a graph", {{graph->itself, false}}, {}});
  for (const Operation& operation : graph->operations) enqueue_locked(state, *stream, operation);
  enqueue_locked(state, *stream, {"the launch of a graph", {{graph->itself, false}}, {}});
  return kSuccess;
}

void fail_driver(const std::string& function, int result) { Locked<State>()->driver_failures[function] = result; }

int driver_failure(const std::string& function) {
  State& state = State::instance();
  const std::lock_guard lock(state.mutex);
  const auto found = state.driver_failures.find(function);
  if (found == state.driver_failures.end()) return kSuccess;
  const int result = found->second;
  state.driver_failures.erase(found);
  return result;
}

size_t launches() { return Locked<State>()->launches; }

size_t live_graphs() { return Locked<State>()->live_graphs; }

}  // namespace emulated
