#include "operators/one_thread.h"

#include <ATen/Parallel.h>
#include <omp.h>

/// Sets the calling thread's number and returns the earlier one. libtorch exports it if it was built with MKL.
extern "C" __attribute__((weak)) int MKL_Set_Num_Threads_Local(int threads);

namespace hybrid_rt::operators {
namespace {

constexpr int64_t kFewValues = 1 << 20;

int set_threads_of_mkl(int threads) {
  return MKL_Set_Num_Threads_Local == nullptr ? 0 : MKL_Set_Num_Threads_Local(threads);
}

}  // namespace

OneThread::OneThread(int64_t values) : is_set_(values < kFewValues) {
  if (!is_set_) return;
  threads_ = at::get_num_threads();  // sets up torch's number in a new thread
  omp_set_num_threads(1);
  threads_of_mkl_ = set_threads_of_mkl(1);
}

OneThread::~OneThread() {
  if (!is_set_) return;
  set_threads_of_mkl(threads_of_mkl_);
  omp_set_num_threads(threads_);
}

}  // namespace hybrid_rt::operators
