#pragma once

#include <torch/script.h>

#include <string>
#include <vector>

#include "hybrid_rt/class_names.h"
#include "hybrid_rt/engine.h"
#include "hybrid_rt/engine_choice.h"
#include "hybrid_rt/error.h"
#include "hybrid_rt/load_options.h"
#include "hybrid_rt/machine.h"

namespace hybrid_rt {

/// The variants of one engine of a bundle.
struct EngineCheck {
  std::string engine;                  ///< name of the engine, for messages: "backbone+rpn.head"
  std::vector<std::string> segments;   ///< dotted paths of the submodules that it replaces
  std::vector<VariantCheck> variants;  ///< in the file's order
};

/// Loads a bundle: reads and checks the manifest and every record of the head, loads the head, chooses a variant of
/// each engine, checks its digest and prepares it (several engines at once). Problems appear here and not at the first
/// request. The file must stay in place: bytes of variants that do not run are not kept, and are read if they are
/// needed later. The module's forward takes and returns what the detector did. Throws Error, and nothing else.
torch::jit::Module load(const std::string& path, const LoadOptions& options = {});

/// Moves a bundle's module that has not run yet, as load() does for its device: Module::to leaves the tensors that are
/// constants of its graph where they are. Throws c10::Error if torch has no such device.
void move_to(torch::jit::Module& module, c10::Device device);

/// Returns the manifest (JSON, see docs/format.md) without unpickling anything. A manifest of format version 1 is
/// converted to version 2. Throws Error(kBundle).
std::string read_manifest(const std::string& path);

/// Reads the names of the classes from a bundle's file; empty if it has none. Throws Error(kBundle).
ClassNames class_names(const std::string& path);

/// Returns the names of the classes of a bundle that load() has read, without reading the file again; empty if it has
/// none.
ClassNames class_names(const torch::jit::Module& module);

/// Returns per engine the variant that would run, and the reasons against the others. Throws Error.
std::vector<EngineCheck> check(const std::string& path, const LoadOptions& options = {},
                               const Machine& machine = Machine::here());

/// Returns the bytes of one record that the manifest names, after comparing them with its digest. Throws
/// Error(kBundle).
std::string read_record(const std::string& path, const std::string& record);

/// Reads the whole file and compares every record with its digest. Throws Error(kBundle) that names the record.
void verify_records(const std::string& path);

/// Compares the records of the head with their digests, and requires a signature if HYBRID_RT_TRUSTED_KEYS is set, for
/// callers that open the archive by other means than load(). Throws Error(kBundle).
void check_head(const std::string& path);

/// Returns the choice for each engine of a loaded bundle, in the order in which the head runs them. Does not throw.
std::vector<EngineChoice> engines(const torch::jit::Module& module);

}  // namespace hybrid_rt
