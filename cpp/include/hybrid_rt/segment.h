#pragma once

// Deprecated names from version 0.1.0 for the declarations in opened_engine.h.

#include "hybrid_rt/opened_engine.h"

namespace hybrid_rt {

using Segment [[deprecated("use OpenedEngine")]] = OpenedEngine;

[[deprecated("use open_engine()")]] inline std::shared_ptr<OpenedEngine> open_segment(const std::string& path,
                                                                                      const std::string& name,
                                                                                      const LoadOptions& options = {}) {
  return open_engine(path, name, options);
}

[[deprecated("use engine_names()")]] inline std::vector<std::string> segments(const std::string& path) {
  return engine_names(path);
}

}  // namespace hybrid_rt
