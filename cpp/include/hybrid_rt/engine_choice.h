#pragma once

#include <string>
#include <vector>

namespace hybrid_rt {

/// One variant of an engine, and whether it could run here.
struct VariantCheck {
  std::string backend;
  std::string precision;
  bool chosen = false;
  std::string refusal;  ///< why it can't run; empty if it can
};

/// The variant that runs one engine of a loaded bundle.
struct EngineChoice {
  std::string name;                    ///< "backbone"; of several segments in one engine "backbone+rpn.head"
  std::vector<std::string> segments;   ///< the dotted names of the segments that it stands for
  std::string backend;                 ///< empty before the engine is prepared, as the two below
  std::string precision;               ///< the variant's, e.g. "bf16"
  std::string description;             ///< one line: see Engine::description()
  std::vector<VariantCheck> variants;  ///< in the file's order; empty before the engine is prepared
};

}  // namespace hybrid_rt
