#pragma once

namespace hybrid_rt {

/// Ends the OpenMP threads that wait for the calling thread's next parallel operator, if there are any. An engine with
/// threads of its own calls it before it runs.
///
/// torch computes the head in OpenMP's threads. GNU's spin for some ten milliseconds after each operator, on the cores
/// that the engine is about to use: on two cores, an engine of two threads then has one and a half. No setting changes
/// that once a process has started. The next parallel operator starts threads again, which takes some ten microseconds
/// each. Does nothing in a parallel region, in a process that was forked (the threads are not there to end), and with
/// an OpenMP library that can't do it. Does not throw.
void end_idle_head_threads();

}  // namespace hybrid_rt
