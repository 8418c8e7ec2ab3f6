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

/// A context and the shapes that were last set in it, which are usually those of the next call.
struct PooledContext {
  explicit PooledContext(c10::Device device) : done(device.type()) {}
  PooledContext(const PooledContext&) = delete;
  PooledContext& operator=(const PooledContext&) = delete;
  /// Waits for its last call to finish.
  ~PooledContext();

  std::unique_ptr<VendorContext> context;
  size_t profile = 0;
  std::vector<Shape> input_shapes;
  std::vector<Shape> output_shapes;
  size_t scratch_size = 0;
  c10::StreamId stream = 0;  ///< stream of its last call
  c10::Event done;           ///< the end of its last call, or of its set-up
};

/// Execution contexts, one per concurrent call, up to a limit. Contexts of different streams and threads run
/// concurrently. A context is reused when its last call is over, or for a call in the same stream.
class ContextPool {
 public:
  ContextPool(const Library& library, VendorEngine& engine, c10::Device device)
      : library_(library), engine_(engine), device_(device) {}

  /// Borrows a context for one call, and returns it however the call ends, with the stream's work up to then as its
  /// last call.
  class Lease {
   public:
    Lease(ContextPool& pool, std::unique_ptr<PooledContext> context, c10::Stream stream)
        : pool_(pool), context_(std::move(context)), stream_(stream) {}
    Lease(const Lease&) = delete;
    Lease& operator=(const Lease&) = delete;
    ~Lease();

    PooledContext& operator*() const { return *context_; }
    PooledContext* operator->() const { return context_.get(); }
    /// Destroys the context after a failure, because its state is unknown. Waits for earlier calls.
    void discard();

   private:
    ContextPool& pool_;
    std::unique_ptr<PooledContext> context_;
    c10::Stream stream_;
  };

  /// Lends a context. Does not wait for GPU work, but if all contexts are lent, waits until another thread has launched
  /// its call. Throws Error(kBackend).
  Lease lease(size_t profile, c10::Stream stream);

  /// Creates a context outside of the pool, for a CUDA graph. Throws Error(kBackend).
  std::unique_ptr<PooledContext> make(size_t profile, c10::Stream stream) const;

  /// Destroys the contexts that no call uses, once their last calls are over.
  void clear();

 private:
  static constexpr size_t kMaxContexts = 16;  // per profile; each has its own scratch memory while it runs

  std::unique_ptr<PooledContext> take_idle(size_t profile, const c10::Stream& stream, bool may_wait_on_device);
  void give_back(std::unique_ptr<PooledContext> context);
  void forget(size_t profile);

  const Library& library_;
  VendorEngine& engine_;
  c10::Device device_;
  std::mutex mutex_;  // guards the members below
  std::condition_variable returned_;
  std::list<std::unique_ptr<PooledContext>> idle_;  // least recently used first
  std::vector<size_t> made_;                        // by profile
};

}  // namespace hybrid_rt::tensorrt
