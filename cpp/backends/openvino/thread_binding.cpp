#include "thread_binding.h"

namespace hybrid_rt::openvino {
namespace {

/// Reads the CPUs of the calling thread. Fails on machines with more CPUs than a cpu_set_t holds.
bool read(cpu_set_t& cpus) { return sched_getaffinity(0, sizeof cpus, &cpus) == 0; }

}  // namespace

bool occupy_every_cpu(int threads) {
  cpu_set_t cpus;
  return read(cpus) && threads >= CPU_COUNT(&cpus);
}

KeptCpus::KeptCpus() : is_known_(read(cpus_)) {}

KeptCpus::~KeptCpus() {
  cpu_set_t now;
  if (is_known_ && read(now) && !CPU_EQUAL(&now, &cpus_)) sched_setaffinity(0, sizeof cpus_, &cpus_);
}

}  // namespace hybrid_rt::openvino
