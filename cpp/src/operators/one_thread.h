#pragma once

#include <cstdint>

namespace hybrid_rt::operators {

/// Keeps torch's and MKL's functions in the calling thread while it exists, if the work is small. MKL's exp, sqrt and
/// log2 open a parallel region for a few hundred values, torch's softmax for 2,048. The threads of such a region gain
/// nothing, and then wait actively on the cores that an engine's threads need.
class OneThread {
 public:
  /// `values` is the number of values to compute, for which a function takes some nanoseconds each.
  explicit OneThread(int64_t values);
  OneThread(const OneThread&) = delete;
  OneThread& operator=(const OneThread&) = delete;
  ~OneThread();

 private:
  bool is_set_;
  int threads_ = 0;
  int threads_of_mkl_ = 0;  // 0: as many as OpenMP
};

}  // namespace hybrid_rt::operators
