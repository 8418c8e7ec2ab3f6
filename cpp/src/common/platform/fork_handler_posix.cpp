#include <pthread.h>

#include "common/platform/fork_handler.h"

namespace hybrid_rt::platform {

void call_in_forked_children(void (*handler)()) { pthread_atfork(nullptr, nullptr, handler); }

void call_around_forks(void (*before)(), void (*in_parent)(), void (*in_child)()) {
  pthread_atfork(before, in_parent, in_child);
}

}  // namespace hybrid_rt::platform
