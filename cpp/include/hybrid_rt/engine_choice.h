#pragma once

#include <string>
#include <vector>

namespace hybrid_rt {

/// One variant of an engine, with the reason if it can't run here.
struct VariantCheck {
  std::string backend;    ///< name of the backend, e.g. "openvino"
  std::string precision;  ///< precision of the artifact, e.g. "bf16"
  bool chosen = false;    ///< true for the variant that runs
  std::string refusal;    ///< reason why it can't run; empty if it can
};

/// The variant that runs one engine of a loaded bundle.
struct EngineChoice {
  std::string name;                    ///< "backbone", or "backbone+rpn.head" for an engine of several segments
  std::vector<std::string> segments;   ///< dotted paths of the submodules that it replaces
  std::string backend;                 ///< its backend; empty before the engine is prepared, like the next two
  std::string precision;               ///< its precision, e.g. "bf16"
  std::string description;             ///< one line: see Engine::description()
  std::vector<VariantCheck> variants;  ///< in the file's order; empty before the engine is prepared
};

}  // namespace hybrid_rt
