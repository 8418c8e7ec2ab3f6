#pragma once

namespace hybrid_rt::platform {

/// Has `handler` called in each process that is forked from this one, in its only thread. Windows has no forks.
void call_in_forked_children(void (*handler)());

}  // namespace hybrid_rt::platform
