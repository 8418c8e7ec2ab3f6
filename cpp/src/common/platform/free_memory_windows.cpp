#include <malloc.h>

#include "common/platform/free_memory.h"

namespace hybrid_rt::platform {

void return_freed_memory() { _heapmin(); }

}  // namespace hybrid_rt::platform
