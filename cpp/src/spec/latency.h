#pragma once

#include "hybrid_rt/latency.h"

namespace hybrid_rt {

/// Throws Error(kOption) for a tolerance or a number of calls that is out of range.
void check_latency_options(const LatencyOptions& options);

/// Returns the entries of a contract that the options name. Throws Error(kOption) for a size that is not in it.
std::vector<SizeLatency> chosen_sizes(const LatencyContract& contract, const LatencyOptions& options);

/// Compares measurements from this machine, in the form of a contract, with a contract. Throws Error(kOption) for a
/// size that the contract does not have.
LatencyCheck compare_latency(const LatencyContract& contract, const LatencyContract& here, double tolerance);

}  // namespace hybrid_rt
