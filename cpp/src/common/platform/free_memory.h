#pragma once

namespace hybrid_rt::platform {

/// Returns memory to the system that the process has freed and that the allocator keeps for later.
void return_freed_memory();

}  // namespace hybrid_rt::platform
