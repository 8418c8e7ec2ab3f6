#pragma once

namespace hybrid_rt::platform {

/// Has `handler` called in each process that is forked from this one, in its only thread. Windows has no forks.
void call_in_forked_children(void (*handler)());

/// Has `before` called in a thread that forks, and then `in_parent` there and `in_child` in the new process.
void call_around_forks(void (*before)(), void (*in_parent)(), void (*in_child)());

}  // namespace hybrid_rt::platform
