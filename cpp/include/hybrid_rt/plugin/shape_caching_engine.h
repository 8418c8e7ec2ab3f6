#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/ArrayRef.h>

#include <cstddef>
#include <cstdint>
#include <map>
#include <mutex>
#include <utility>
#include <vector>

#include "hybrid_rt/engine.h"

namespace hybrid_rt {

/// An engine whose runtime can write into given memory, but reports its output shapes only after a run. The first run
/// at each set of input shapes copies the runtime's own outputs; later runs write directly into torch's tensors.
class ShapeCachingEngine : public Engine {
 public:
  std::vector<at::Tensor> run(at::ArrayRef<at::Tensor> inputs) final;

 protected:
  using Shape = std::vector<std::int64_t>;  ///< sizes of a tensor's dimensions

  /// Result of a run into the runtime's own memory.
  struct CopiedOutputs {
    std::vector<at::Tensor> outputs;  ///< copies of the outputs
    /// True if runs at these shapes can't write into given memory, so that each has to copy.
    bool must_copy = false;
  };

  /// Detects outputs that lie in the memory of an input or of another output (an input that is returned as it is). A
  /// runtime that is told to write such an output elsewhere may overwrite the input instead.
  class SharedMemory {
   public:
    explicit SharedMemory(at::ArrayRef<at::Tensor> inputs);  ///< Starts with the memory of the inputs.
    /// Adds an output. Returns true if it overlaps the inputs or an output that was added before.
    bool overlaps(const void* data, std::size_t bytes);

   private:
    std::vector<std::pair<const char*, std::size_t>> ranges_;
  };

  /// Runs into the runtime's own memory, and copies the outputs from there.
  virtual CopiedOutputs run_and_copy(at::ArrayRef<at::Tensor> inputs) = 0;
  /// Runs into new tensors of these shapes.
  virtual std::vector<at::Tensor> run_into(const std::vector<Shape>& shapes, at::ArrayRef<at::Tensor> inputs) = 0;

 private:
  std::mutex mutex_;                                                // guards what follows
  std::map<std::vector<Shape>, std::vector<Shape>> output_shapes_;  // by input shapes
};

}  // namespace hybrid_rt
