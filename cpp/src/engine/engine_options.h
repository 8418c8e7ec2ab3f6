#pragma once

#include "hybrid_rt/engine.h"
#include "hybrid_rt/load_options.h"

namespace hybrid_rt {

/// What of the options of a load concerns an engine.
inline EngineOptions engine_options(const LoadOptions& options) {
  return {options.device, options.threads, options.emulate_precision, !options.warm_up.empty(), options.concurrency};
}

}  // namespace hybrid_rt
