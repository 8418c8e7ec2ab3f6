#pragma once

namespace hybrid_rt::platform {

/// Calls `handler` in the only thread of each process that is forked from this one. Windows has no fork.
void call_in_forked_children(void (*handler)());

/// Calls `before` in a thread that forks, then `in_parent` there and `in_child` in the new process.
void call_around_forks(void (*before)(), void (*in_parent)(), void (*in_child)());

}  // namespace hybrid_rt::platform
