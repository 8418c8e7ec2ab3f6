#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <utility>

#include "gpu.h"
#include "gpu_state.h"

namespace emulated {
namespace {

constexpr size_t kGuard = 512;  // bytes before a block; at least as many after it
constexpr unsigned char kGuardByte = 0xA5;
constexpr unsigned char kFreshByte = 0xFF;     // floats of this pattern are NaN
constexpr unsigned char kReleasedByte = 0xDB;  // floats of this pattern are about -1e17
constexpr size_t kQuarantine = size_t{64} << 20;

struct Block {
  unsigned char* whole;  // pointer to free
  unsigned char* data;
  size_t size;
  Stream* stream;
  ResourcePointer resource;
};

struct Heap {
  std::mutex mutex;
  std::map<const unsigned char*, Block> live;  // by start address
  std::deque<std::pair<unsigned char*, size_t>> released;
  size_t released_bytes = 0;
  size_t live_bytes = 0;
  size_t allocations = 0;
  int until_failure = 0;

  static Heap& instance() {
    static Heap* const heap = new Heap();
    return *heap;
  }

  /// Keeps freed memory readable for a while, so that a use after free reads the pattern.
  void keep_released(unsigned char* whole, size_t size) {
    const std::lock_guard lock(mutex);
    released.emplace_back(whole, size);
    released_bytes += size;
    while (released_bytes > kQuarantine) {
      std::free(released.front().first);
      released_bytes -= released.front().second;
      released.pop_front();
    }
  }
};

/// Returns the bytes of a block with its guard zones.
size_t whole_size(size_t size) { return ((size + kGuard) / (2 * kAllocationAlignment) + 3) * 2 * kAllocationAlignment; }

bool is_filled(const unsigned char* bytes, size_t size, unsigned char value) {
  return std::all_of(bytes, bytes + size, [value](unsigned char each) { return each == value; });
}

}  // namespace

void* allocate(size_t size, Stream* stream) {
  State& state = State::instance();
  {
    const std::lock_guard lock(state.mutex);
    if (Stream* captured = captured_by_this_thread(state)) break_capture(state, *captured, "allocating memory");
  }
  Heap& heap = Heap::instance();
  const std::lock_guard lock(heap.mutex);
  ++heap.allocations;
  if (heap.until_failure > 0 && --heap.until_failure == 0) return nullptr;
  // At an odd multiple of torch's alignment, so that nothing relies on a larger one.
  const size_t step = 2 * kAllocationAlignment;
  const size_t in_all = whole_size(size);
  auto* const whole = static_cast<unsigned char*>(std::aligned_alloc(step, in_all));
  if (whole == nullptr) return nullptr;
  std::memset(whole, kGuardByte, in_all);
  unsigned char* const data = whole + kAllocationAlignment;
  static_assert(kAllocationAlignment >= kGuard);
  std::memset(data, kFreshByte, size);
  const auto resource =
      make_resource("memory " + std::to_string(heap.allocations) + " of " + std::to_string(size) + " bytes");
  heap.live[data] = {whole, data, size, stream, resource};
  heap.live_bytes += size;
  return data;
}

void release(void* data) {
  Heap& heap = Heap::instance();
  Block block;
  {
    const std::lock_guard lock(heap.mutex);
    const auto found = heap.live.find(static_cast<unsigned char*>(data));
    if (found == heap.live.end()) {
      report_breach("memory is released that is none");
      return;
    }
    block = found->second;
    heap.live.erase(found);
    heap.live_bytes -= block.size;
  }
  State& state = State::instance();
  const std::lock_guard lock(state.mutex);
  const auto poison = [block] {
    const size_t behind = whole_size(block.size) - kAllocationAlignment - block.size;
    if (!is_filled(block.whole, kAllocationAlignment, kGuardByte) ||
        !is_filled(block.data + block.size, behind, kGuardByte)) {
      report_breach("something was written beside " + block.resource->name);
    }
    std::memset(block.data, kReleasedByte, block.size);
    Heap::instance().keep_released(block.whole, whole_size(block.size));
  };
  enqueue_locked(state, *block.stream, {"its release", {{block.resource, true}}, poison});
  block.resource->is_released = true;
}

void fail_allocation(int n) { Locked<Heap>()->until_failure = n; }

size_t allocations() { return Locked<Heap>()->allocations; }

size_t live_bytes() { return Locked<Heap>()->live_bytes; }

Use use_of(const void* data, size_t size, bool is_write, int device, const std::string& what) {
  Heap& heap = Heap::instance();
  const auto* const begin = static_cast<const unsigned char*>(data);
  const std::lock_guard lock(heap.mutex);
  auto found = heap.live.upper_bound(begin);
  if (found != heap.live.begin()) {
    const Block& block = (--found)->second;
    // For zero bytes, one past the end is a valid address too.
    if (begin >= block.data && begin + size <= block.data + block.size) {
      if (device_of(block.stream) != device) report_breach(what + " lies on another device");
      return {block.resource, is_write};
    }
  }
  report_breach(what + " lies outside of the device's memory, or beyond the end of its block");
  return {make_resource("no memory"), is_write};
}

}  // namespace emulated
