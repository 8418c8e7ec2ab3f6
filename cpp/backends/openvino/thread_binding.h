#pragma once

#include <sched.h>

namespace hybrid_rt::openvino {

/// Returns true if `threads` threads occupy every CPU that the calling thread may run on.
bool occupy_every_cpu(int threads);

/// Restores the CPUs that the calling thread may run on. OpenVINO binds it to one CPU during a call, and afterwards
/// gives it the CPUs that the process had when the model was compiled.
class KeptCpus {
 public:
  KeptCpus();
  KeptCpus(const KeptCpus&) = delete;
  KeptCpus& operator=(const KeptCpus&) = delete;
  ~KeptCpus();

 private:
  cpu_set_t cpus_{};
  bool is_known_;
};

}  // namespace hybrid_rt::openvino
