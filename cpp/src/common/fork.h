#pragma once

namespace hybrid_rt {

/// Called before a module runs. A process that is forked afterwards has one of the threads that OpenMP, and so torch,
/// would wait for: there they compute in one thread, which is said in the log.
void prepare_for_fork();

}  // namespace hybrid_rt
