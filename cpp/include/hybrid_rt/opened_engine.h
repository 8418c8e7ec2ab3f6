#pragma once

#include <memory>
#include <string>
#include <vector>

#include "hybrid_rt/engine.h"
#include "hybrid_rt/engine_choice.h"
#include "hybrid_rt/load_options.h"
#include "hybrid_rt/specs.h"

namespace hybrid_rt {

/// One engine of a bundle, for a program with its own head. Neither this header nor the code behind it uses
/// torch::jit.
class OpenedEngine : public Engine {
 public:
  /// Returns the name for messages: the dotted paths of its segments, joined by "+".
  virtual const std::string& name() const = 0;
  /// Returns the dotted paths of the submodules that it replaces.
  virtual const std::vector<std::string>& segments() const = 0;
  /// Returns the spec of the running variant: inputs and outputs, precision, backend.
  virtual const ArtifactSpec& spec() const = 0;
  /// Returns the variants in the file's order: the one that runs, and the reasons against the others.
  virtual const std::vector<VariantCheck>& variants() const = 0;
};

/// Opens an engine of a bundle: chooses a variant and loads it. `name` is the engine's, or that of a segment in it.
/// run() takes the inputs of spec() in their order and throws Error(kInput) for what does not fit. `options.warm_up`
/// runs the engine once if it names any size. Throws Error.
std::shared_ptr<OpenedEngine> open_engine(const std::string& path, const std::string& name,
                                          const LoadOptions& options = {});

/// Returns the names of a bundle's engines. Throws Error(kBundle).
std::vector<std::string> engine_names(const std::string& path);

}  // namespace hybrid_rt
