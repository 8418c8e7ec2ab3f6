#pragma once

namespace hybrid_rt {

/// Marks a call into an engine: its creation or a run. A fork waits until the calls of other threads have ended, and
/// new calls wait for the fork, because a lock that an engine holds would stay locked in the child forever. A forked
/// process lacks the threads that OpenMP, and so torch, would wait for. There, engines compute in one thread, and the
/// log says so.
class EngineCall {
 public:
  EngineCall();
  EngineCall(const EngineCall&) = delete;
  EngineCall& operator=(const EngineCall&) = delete;
  ~EngineCall();
};

}  // namespace hybrid_rt
