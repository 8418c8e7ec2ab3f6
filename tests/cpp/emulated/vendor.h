#pragma once

#include <atomic>
#include <string>

// The switches and counters of the stand-in for TensorRT, a library that is opened at run time and shares this object
// with the tests.

namespace emulated {

struct Vendor {
  std::atomic<int> fail_enqueue{0};  ///< the n-th enqueue from now on fails (1 is the next one); 0: none fails
  std::atomic<int> slowness{0};      ///< duration of an enqueue on the host in microseconds
  std::atomic<bool> refuses_contexts{false};
  std::atomic<bool> refuses_profiles{false};
  std::atomic<bool> hides_output_shapes{false};  ///< as if they depended on values
  std::atomic<bool> fails_scratch_size{false};
  std::atomic<bool> refuses_inputs{false};   ///< their addresses
  std::atomic<bool> refuses_outputs{false};  ///< likewise
  std::atomic<bool> says_nothing{false};     ///< fails without a message

  // TensorRT-RTX's (headers by make_rtx_headers.py).
  std::atomic<bool> refuses_graph_strategy{false};
  std::atomic<int> kernel_strategy{-1};  ///< of the last context; -1: none was set
  std::atomic<int> graph_strategy{-1};
  std::atomic<int> kernels_from_cache{0};  ///< number of kernels from a runtime cache

  std::atomic<int> contexts{0};  ///< number of live contexts
  std::atomic<int> made{0};      ///< number of contexts created so far
  std::atomic<int> engines{0};
  std::atomic<int> runtimes{0};
  std::atomic<int> enqueues{0};

  static Vendor& instance();
};

}  // namespace emulated
