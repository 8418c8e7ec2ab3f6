#pragma once

#include <c10/core/Event.h>
#include <c10/core/Stream.h>

#include <condition_variable>
#include <list>
#include <memory>
#include <mutex>
#include <vector>

#include "bindings.h"
#include "library.h"
#include "vendor_runtime.h"

namespace hybrid_rt::tensorrt {

/// A context with the shapes that were set last: those of the next call are most often the same.
struct PooledContext {
  explicit PooledContext(c10::Device device) : done(device.type()) {}
  PooledContext(const PooledContext&) = delete;
  PooledContext& operator=(const PooledContext&) = delete;
  /// Waits for its last call.
  ~PooledContext();

  std::unique_ptr<VendorContext> context;
  size_t profile = 0;
  std::vector<Shape> input_shapes;
  std::vector<Shape> output_shapes;
  size_t scratch_size = 0;
  c10::StreamId stream = 0;  ///< of its last call
  c10::Event done;           ///< of its last call, or of what set it up
};

/// Execution contexts, as many as there were calls at one time, up to a bound: those of several streams and threads run
/// at once. A context takes the next call when its last one is over, or was put into the same stream.
class ContextPool {
 public:
  ContextPool(const Library& library, VendorEngine& engine, c10::Device device)
      : library_(library), engine_(engine), device_(device) {}

  /// A context for one call; it goes back, marked with the work that is in the stream by then, however the call ends.
  class Lease {
   public:
    Lease(ContextPool& pool, std::unique_ptr<PooledContext> context, c10::Stream stream)
        : pool_(pool), context_(std::move(context)), stream_(stream) {}
    Lease(const Lease&) = delete;
    Lease& operator=(const Lease&) = delete;
    ~Lease();

    PooledContext& operator*() const { return *context_; }
    PooledContext* operator->() const { return context_.get(); }
    /// After a failure: its state is unknown. Waits for the calls before.
    void discard();

   private:
    ContextPool& pool_;
    std::unique_ptr<PooledContext> context_;
    c10::Stream stream_;
  };

  /// Waits for no GPU work; for another thread's call to be put into its stream where all contexts are taken. Throws
  /// Error(kBackend).
  Lease lease(size_t profile, c10::Stream stream);

  /// One that is not of the pool, for a CUDA graph. Throws Error(kBackend).
  std::unique_ptr<PooledContext> make(size_t profile, c10::Stream stream) const;

  /// Destroys those that no call has, when their last calls are over.
  void clear();

 private:
  static constexpr size_t kMaxContexts = 16;  // of one profile; each has scratch memory of its own while it runs

  std::unique_ptr<PooledContext> take_idle(size_t profile, const c10::Stream& stream, bool may_wait_on_device);
  void give_back(std::unique_ptr<PooledContext> context);
  void forget(size_t profile);

  const Library& library_;
  VendorEngine& engine_;
  c10::Device device_;
  std::mutex mutex_;  // guards what follows
  std::condition_variable returned_;
  std::list<std::unique_ptr<PooledContext>> idle_;  // those that were used first in front
  std::vector<size_t> made_;                        // by profile
};

}  // namespace hybrid_rt::tensorrt
