#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

// A GPU that is emulated with host memory and threads, for tests. Its streams are queues with one thread each, so that
// work is as asynchronous as CUDA's. It checks all work: each operation declares the memory and objects that it reads
// and writes, and any two operations that touch the same thing must be ordered by streams, events or the host's waiting
// (tracked with a vector clock per stream). Missing order is a breach, whether or not it caused a wrong result this
// time. It is independent of torch and TensorRT.

namespace emulated {

/// Something that operations must use one after another: a block of memory, an execution context, a graph.
class Resource;
using ResourcePointer = std::shared_ptr<Resource>;

struct Use {
  ResourcePointer resource;
  bool is_write;
};

struct Operation {
  std::string name;
  std::vector<Use> uses;
  std::function<void()> work;  ///< runs in the stream's thread; may be empty
  bool is_delayed = false;     ///< by a random time up to the limit of set_delay
};

class Stream;
class Graph;

// Records a breach of a rule. Breaches are kept in the order of detection.
void report_breach(const std::string& text);
std::vector<std::string> take_breaches();
/// Sets the maximum delay of operations. Each operation draws its own.
void set_delay(int microseconds);

// Devices. Each thread has a current one.
void set_device_count(int count);
int device_count();
int current_device();
void set_current_device(int device);
/// Every call on a lost device fails until it is found again. Work in its streams ends.
void set_lost(int device, bool is_lost);
bool is_lost(int device);

// Memory. It is filled with a pattern when it is allocated and when it is freed, and is surrounded by guard zones. As
// with torch's allocator, a block belongs to the stream that it was allocated for, and is freed in the order of that
// stream.
constexpr size_t kAllocationAlignment = 512;  // of torch's CUDA allocator; no block has a larger alignment
/// Returns null if there is not enough memory (see fail_allocation).
void* allocate(size_t size, Stream* stream);
void release(void* data);
/// Makes the n-th allocation from now on fail (1 is the next one); 0: none fails.
void fail_allocation(int n);
size_t allocations();
size_t live_bytes();

/// Returns the use of `size` bytes from `data` on. Reports a breach if they are not within one live block of the
/// device.
Use use_of(const void* data, size_t size, bool is_write, int device, const std::string& what);

ResourcePointer make_resource(const std::string& name);
/// Reports a breach unless the host knows that all uses are over: it waited, it asked, or the device is lost.
void require_idle(const ResourcePointer& resource, const std::string& what);
/// Reports a breach unless all uses are over before the next operation in the stream.
void require_order(const ResourcePointer& resource, const Stream* stream, const std::string& what);

// Streams.
Stream* default_stream(int device);
Stream* make_stream(int device);
void destroy(Stream* stream);
int device_of(const Stream* stream);
/// Converts CUDA's handle; null is the default stream of the current device.
Stream* stream_of(void* handle);
void* handle_of(Stream* stream);
void enqueue(Stream* stream, Operation operation);
void synchronize(Stream* stream);
bool query(Stream* stream);
void synchronize_all();

/// A position in a stream, like cudaEvent_t.
class Event {
 public:
  Event();
  ~Event();
  Event(const Event&) = delete;
  Event& operator=(const Event&) = delete;
  void record(Stream* stream);
  /// Blocks the stream until the recorded work is over.
  void block(Stream* stream) const;
  bool query() const;
  void synchronize() const;

  struct Mark;

 private:
  std::shared_ptr<Mark> mark_;
};

// Capture into graphs, with the results of CUDA's driver.
enum Result {
  kSuccess = 0,
  kInvalidValue = 1,
  kOutOfMemory = 2,
  kInvalidContext = 201,
  kLaunchFailed = 719,
  kCaptureUnsupported = 900,
  kCaptureInvalidated = 901,
  kCaptureImplicit = 906,
  kCaptureWrongThread = 908
};
bool is_capturing(const Stream* stream);
Result begin_capture(Stream* stream);
/// The caller owns the graph; it is null unless the call succeeds.
Result end_capture(Stream* stream, Graph** graph);
/// Invalidates the next capture, like an unsafe call of another library.
void invalidate_next_capture();
void destroy(Graph* graph);
Graph* instantiate(Graph* graph);
Result launch(Graph* graph, Stream* stream);
size_t launches();
size_t live_graphs();

/// Makes the next call of a driver function, such as "cuGraphLaunch", do nothing and return this result.
void fail_driver(const std::string& function, int result);
/// Returns and clears the result that a call of the function must return; kSuccess if none was set.
int driver_failure(const std::string& function);

// Gives this thread a driver context. Like with torch, a thread has none before it calls CUDA's runtime, and the
// driver's functions fail without one.
void make_context_current();
bool has_current_context();

}  // namespace emulated
