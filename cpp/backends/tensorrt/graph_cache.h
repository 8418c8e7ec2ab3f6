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

/// Whether calls are recorded as CUDA graphs: HYBRID_RT_TENSORRT_CUDA_GRAPHS.
enum class GraphMode {
  kOff,     ///< "off", or not set
  kCopy,    ///< "copy": a graph a shape; inputs are copied to where it reads them
  kStatic,  ///< "static": a graph for each shape and each set of the inputs' addresses, for callers that reuse their
            ///< memory
};

/// As the variable says. Throws Error(kOption) for another text.
GraphMode graph_mode();

std::string to_string(GraphMode mode);

/// How calls are recorded, by the environment.
struct GraphOptions {
  GraphMode mode = GraphMode::kOff;
  /// Bytes on the device that the graphs of one engine may take: HYBRID_RT_TENSORRT_GRAPH_MEMORY.
  size_t memory = 0;

  /// Throws Error(kOption) for a value that a variable does not take.
  static GraphOptions from_environment();
};

/// "off", or the mode and the memory: "copy, 1024 MiB".
std::string to_string(const GraphOptions& options);

/// Calls that were recorded, as many as fit into the memory; the ones that were used least recently go. Outputs are
/// copied out, since they are the caller's. Thread-safe; calls of one graph run one after the other.
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
  /// Waits for what runs.
  ~GraphCache();

  /// Nothing where the call can't be recorded, which is warned of once a shape. Throws Error(kBackend).
  std::optional<std::vector<at::Tensor>> run(size_t profile, at::ArrayRef<at::Tensor> inputs,
                                             const c10::Stream& stream);

 private:
  /// What a context and a graph are taken to need besides their tensors; nobody tells. It bounds their number too.
  static constexpr size_t kBytesOfGraph = size_t{4} << 20;

  struct Key {
    std::vector<Shape> shapes;
    std::vector<const void*> addresses;  // of the inputs that are read in place, null for the others
    bool operator==(const Key&) const = default;
  };
  struct Entry {
    explicit Entry(c10::Device device) : done(device.type()) {}
    Entry(const Entry&) = delete;
    Entry& operator=(const Entry&) = delete;
    ~Entry() { clear(); }
    /// As it was made, when its last call is over.
    void clear();
    size_t size() const;

    Key key;
    size_t bytes = kBytesOfGraph;  // as the cache counts them; guarded by its mutex
    std::mutex mutex;              // guards what follows
    bool is_tried = false;
    std::vector<at::Tensor> inputs;  // where it reads them; undefined: at the caller's address, or not at all
    CallMemory memory;
    std::unique_ptr<PooledContext> context;
    std::unique_ptr<CudaGraph> graph;  // destroyed before what it reads and writes
    c10::Event done;                   // of its last call
  };

  using Entries = std::list<std::shared_ptr<Entry>>;

  std::shared_ptr<Entry> entry_of(const Key& key);
  /// Counts what an entry has become, and drops others that do not fit beside it.
  void count(const std::shared_ptr<Entry>& entry);
  /// Takes entries out until the others fit. The mutex is held; what is returned is destroyed without it.
  Entries take_surplus();
  /// Tells whether a graph reads this input where the caller has it.
  bool is_read_in_place(size_t input, const at::Tensor& tensor) const;
  void record(Entry& entry, size_t profile, at::ArrayRef<at::Tensor> inputs, const c10::Stream& stream);
  /// Runs once in the stream, and waits for it. Throws.
  void set_up(Entry& entry, size_t profile, at::ArrayRef<at::Tensor> inputs, const c10::Stream& stream);

  const Library& library_;
  const Bindings& bindings_;
  ContextPool& contexts_;
  c10::Device device_;
  GraphOptions options_;
  const std::vector<c10::ScalarType>& output_dtypes_;
  std::mutex mutex_;  // guards what follows
  Entries entries_;   // the last used in front
  size_t bytes_ = 0;  // of all entries
};

}  // namespace hybrid_rt::tensorrt
