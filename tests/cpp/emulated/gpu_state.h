#pragma once

#include <atomic>
#include <condition_variable>
#include <deque>
#include <map>
#include <mutex>
#include <random>
#include <thread>

#include "gpu.h"

// Shared by gpu.cpp, memory.cpp and graph.cpp.

namespace emulated {

/// By stream number, the last operation that is known to be over.
using Clock = std::vector<uint64_t>;

void merge(Clock& clock, const Clock& other);
uint64_t at(const Clock& clock, size_t stream);

class Resource {
 public:
  explicit Resource(std::string name) : name(std::move(name)) {}

  struct Past {
    size_t stream;
    uint64_t tick;
    bool is_write;
    std::string operation;
  };

  std::string name;
  bool is_released = false;
  std::vector<Past> past;
};

struct Event::Mark {
  explicit Mark(int device) : device(device) {}
  int device;
  Clock clock;
  std::mutex mutex;
  std::condition_variable changed;
  bool is_done = false;
};

class Graph {
 public:
  std::vector<Operation> operations;
  bool is_executable = false;
  int device = 0;
  ResourcePointer itself;
};

class Stream {
 public:
  Stream(int device, size_t number, bool is_default);
  ~Stream();

  const int device;
  const size_t number;
  const bool is_default;
  Clock clock;                     // guarded by the state's mutex, like the members below
  std::unique_ptr<Graph> capture;  // null if there is none
  std::thread::id capturing_thread;
  bool is_capture_valid = false;

  void push(std::function<void()> work);
  bool is_idle();
  void wait();

 private:
  void run();

  std::mutex mutex_;  // guards the members below
  std::condition_variable changed_;
  std::deque<std::function<void()>> queue_;
  bool is_busy_ = false;
  bool is_ending_ = false;
  std::thread thread_;
};

struct State {
  std::mutex mutex;
  std::vector<std::string> breaches;
  std::mt19937 random{20261126};
  int delay = 200;  // microseconds
  int devices = 1;
  std::map<int, bool> lost;
  std::vector<std::unique_ptr<Stream>> streams;
  std::map<int, Stream*> default_streams;
  Clock host;  // operations that the host knows to be over
  bool is_next_capture_invalid = false;
  std::map<std::string, int> driver_failures;
  size_t launches = 0;
  size_t live_graphs = 0;

  static State& instance();
};

/// Gives access to the only object of a class, and holds its mutex during its own lifetime.
template <typename T>
class Locked {
 public:
  T* operator->() const { return &object_; }

 private:
  T& object_ = T::instance();
  std::lock_guard<std::mutex> lock_{object_.mutex};
};

/// Adds an operation to a stream that is not being captured. The state's mutex is held.
void enqueue_locked(State& state, Stream& stream, const Operation& operation);
/// Returns the stream that this thread captures, or null. The state's mutex is held.
Stream* captured_by_this_thread(State& state);
/// Invalidates a capture, like CUDA does for a forbidden call. The state's mutex is held.
void break_capture(State& state, Stream& stream, const std::string& what);

}  // namespace emulated
