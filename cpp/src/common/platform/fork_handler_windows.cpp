#include "common/platform/fork_handler.h"

namespace hybrid_rt::platform {

void call_in_forked_children(void (* /*handler*/)()) {}

void call_around_forks(void (* /*before*/)(), void (* /*in_parent*/)(), void (* /*in_child*/)()) {}

}  // namespace hybrid_rt::platform
