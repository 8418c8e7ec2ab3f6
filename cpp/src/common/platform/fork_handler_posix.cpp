#include <pthread.h>

#include "common/platform/fork_handler.h"

namespace hybrid_rt::platform {

void call_in_forked_children(void (*handler)()) { pthread_atfork(nullptr, nullptr, handler); }

}  // namespace hybrid_rt::platform
