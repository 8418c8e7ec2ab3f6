#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

// A GPU made of host memory and threads, for tests. Its streams are queues with a thread each, so that work is as
// asynchronous as CUDA's. It watches over what is put into them: each operation names the memory and the objects that
// it reads and writes, and each two of them that touch the same thing must be in an order that streams, events or the
// host's waiting give (a vector clock per stream tells). What is not, is a breach, whether or not it went wrong this
// time. It knows nothing of torch and nothing of TensorRT.

namespace emulated {

/// A thing that operations use one after the other: a block of memory, an execution context, a graph.
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
  bool is_delayed = false;     ///< by a random time, up to what set_delay says
};

class Stream;
class Graph;

// Breaches of a rule, in the order in which they were noticed.
void report_breach(const std::string& text);
std::vector<std::string> take_breaches();
/// The longest time by which an operation is delayed; each one draws its own.
void set_delay(int microseconds);

// Devices. Each thread has a current one.
void set_device_count(int count);
int device_count();
int current_device();
void set_current_device(int device);
/// A lost device fails each call until it is found again. Work that was put into its streams ends.
void set_lost(int device, bool is_lost);
bool is_lost(int device);

// Memory. It is filled with a pattern when it is made and when it is released, and lies between guard zones. Like
// torch's allocator: a block belongs to the stream that it was made for, and is released in the order of that stream.
constexpr size_t kAllocationAlignment = 512;  // of torch's CUDA allocator: no block is aligned any better
/// Gives null where there is not enough memory (see fail_allocation).
void* allocate(size_t size, Stream* stream);
void release(void* data);
/// The n-th allocation from now on fails, 1 being the next one; 0: none does.
void fail_allocation(int n);
size_t allocations();
size_t live_bytes();

/// The uses of `size` bytes from `data` on. Reports a breach where they are not inside one live block of the device.
Use use_of(const void* data, size_t size, bool is_write, int device, const std::string& what);

ResourcePointer make_resource(const std::string& name);
/// Reports a breach unless the host knows that all that uses it is over: it waited, or asked, or the device is lost.
void require_idle(const ResourcePointer& resource, const std::string& what);
/// Reports a breach unless all that uses it is over before what comes next in the stream.
void require_order(const ResourcePointer& resource, const Stream* stream, const std::string& what);

// Streams.
Stream* default_stream(int device);
Stream* make_stream(int device);
void destroy(Stream* stream);
int device_of(const Stream* stream);
/// CUDA's handle: null is the default stream of the current device.
Stream* stream_of(void* handle);
void* handle_of(Stream* stream);
void enqueue(Stream* stream, Operation operation);
void synchronize(Stream* stream);
bool query(Stream* stream);
void synchronize_all();

/// A place in a stream, as cudaEvent_t is one.
class Event {
 public:
  Event();
  ~Event();
  Event(const Event&) = delete;
  Event& operator=(const Event&) = delete;
  void record(Stream* stream);
  /// The stream goes on when what was recorded is over.
  void block(Stream* stream) const;
  bool query() const;
  void synchronize() const;

  struct Mark;

 private:
  std::shared_ptr<Mark> mark_;
};

// Capture into graphs, by the results of CUDA's driver.
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
/// The graph is the caller's; null unless it succeeds.
Result end_capture(Stream* stream, Graph** graph);
/// The next capture is invalidated, as by an unsafe call of another library.
void invalidate_next_capture();
void destroy(Graph* graph);
Graph* instantiate(Graph* graph);
Result launch(Graph* graph, Stream* stream);
size_t launches();
size_t live_graphs();

/// The next call of a function of the driver, such as "cuGraphLaunch", does nothing and gives this result.
void fail_driver(const std::string& function, int result);
/// Returns what a call of the function is to give, and forgets it; kSuccess: nothing was asked for.
int driver_failure(const std::string& function);

// A thread has no context of the driver's before it calls CUDA's runtime, as torch does; the driver's functions fail
// without one.
void make_context_current();
bool has_current_context();

}  // namespace emulated
