#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/Event.h>
#include <c10/core/Stream.h>

#include <list>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "bindings.h"
#include "call.h"
#include "context_pool.h"
#include "cuda.h"
#include "library.h"

namespace hybrid_rt::tensorrt {

/// Recording of calls as CUDA graphs, from HYBRID_RT_TENSORRT_CUDA_GRAPHS.
enum class GraphMode {
  kOff,     ///< "off", or not set
  kCopy,    ///< "copy": one graph per shape, which reads copies of the inputs
  kStatic,  ///< "static": one graph per shape and set of input addresses, for callers that reuse their
            ///< memory
};

/// Reads the variable. Throws Error(kOption) for any other text.
GraphMode graph_mode();

std::string to_string(GraphMode mode);

/// Options of recording, from the environment.
struct GraphOptions {
  GraphMode mode = GraphMode::kOff;
  /// Limit of the device memory of one engine's graphs, in bytes: HYBRID_RT_TENSORRT_GRAPH_MEMORY.
  size_t memory = 0;

  /// Reads the environment. Throws Error(kOption) for a value that is not allowed.
  static GraphOptions from_environment();
};

/// Returns "off", or the mode and the memory: "copy, 1024 MiB".
std::string to_string(const GraphOptions& options);

/// Recorded calls, as many as fit into the memory limit; the least recently used ones are dropped. Outputs are copied,
/// because they belong to the caller. Thread-safe; calls of the same graph run one after another.
class GraphCache {
 public:
  GraphCache(const Library& library, const Bindings& bindings, ContextPool& contexts, c10::Device device,
             const GraphOptions& options, const std::vector<c10::ScalarType>& output_dtypes)
      : library_(library),
        bindings_(bindings),
        contexts_(contexts),
        device_(device),
        options_(options),
        output_dtypes_(output_dtypes) {}
  GraphCache(const GraphCache&) = delete;
  GraphCache& operator=(const GraphCache&) = delete;
  /// Waits for running graphs.
  ~GraphCache();

  /// Runs a call through its graph. Returns nothing if the call can't be recorded, and warns once per shape. Throws
  /// Error(kBackend).
  std::optional<std::vector<at::Tensor>> run(size_t profile, at::ArrayRef<at::Tensor> inputs,
                                             const c10::Stream& stream);

 private:
  /// Assumed memory of a context and a graph in addition to their tensors, which CUDA does not report. It also bounds
  /// their number.
  static constexpr size_t kBytesOfGraph = size_t{4} << 20;

  struct Key {
    std::vector<Shape> shapes;
    std::vector<const void*> addresses;  // addresses of the inputs that are read in place, null for the others
    bool operator==(const Key&) const = default;
  };
  struct Entry {
    explicit Entry(c10::Device device) : done(device.type()) {}
    Entry(const Entry&) = delete;
    Entry& operator=(const Entry&) = delete;
    ~Entry() { clear(); }
    /// Resets the entry once its last call is over.
    void clear();
    size_t size() const;

    Key key;
    size_t bytes = kBytesOfGraph;  // as counted by the cache; guarded by its mutex
    std::mutex mutex;              // guards the members below
    bool is_tried = false;
    std::vector<at::Tensor> inputs;  // where the graph reads them; undefined if it does not read them here
    CallMemory memory;
    std::unique_ptr<PooledContext> context;
    std::unique_ptr<CudaGraph> graph;  // destroyed before the memory that it reads and writes
    c10::Event done;                   // of its last call
  };

  using Entries = std::list<std::shared_ptr<Entry>>;

  std::shared_ptr<Entry> entry_of(const Key& key);
  /// Updates the counted size of an entry, and drops others that no longer fit.
  void count(const std::shared_ptr<Entry>& entry);
  /// Removes entries until the others fit, and returns them. Call it with the mutex held, and destroy the result
  /// without it.
  Entries take_surplus();
  /// Returns true if a graph reads this input in the caller's memory.
  bool is_read_in_place(size_t input, const at::Tensor& tensor) const;
  void record(Entry& entry, size_t profile, at::ArrayRef<at::Tensor> inputs, const c10::Stream& stream);
  /// Runs once in the stream and waits for it. Throws on failure.
  void set_up(Entry& entry, size_t profile, at::ArrayRef<at::Tensor> inputs, const c10::Stream& stream);

  const Library& library_;
  const Bindings& bindings_;
  ContextPool& contexts_;
  c10::Device device_;
  GraphOptions options_;
  const std::vector<c10::ScalarType>& output_dtypes_;
  std::mutex mutex_;  // guards the members below
  Entries entries_;   // most recently used first
  size_t bytes_ = 0;  // of all entries
};

}  // namespace hybrid_rt::tensorrt
