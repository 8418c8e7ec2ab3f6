#pragma once

namespace hybrid_rt {

/// Stands for a call into an engine: its making or a run. A fork waits until those of other threads have ended, and new
/// ones wait for the fork: a lock that an engine holds would stay locked in the child for ever. A process that is
/// forked afterwards has one of the threads that OpenMP, and so torch, would wait for: there they compute in one
/// thread, which is said in the log.
class EngineCall {
 public:
  EngineCall();
  EngineCall(const EngineCall&) = delete;
  EngineCall& operator=(const EngineCall&) = delete;
  ~EngineCall();
};

}  // namespace hybrid_rt
