#pragma once

#include "hybrid_rt/engine.h"
#include "hybrid_rt/load_options.h"

namespace hybrid_rt {

/// Returns the part of the load options that concerns an engine.
inline EngineOptions engine_options(const LoadOptions& options) {
  return {.device = options.device,
          .threads = options.threads,
          .emulate_precision = options.emulate_precision,
          .warm_up = !options.warm_up.empty(),
          .concurrency = options.concurrency,
          .pin_threads = options.pin_threads};
}

}  // namespace hybrid_rt
