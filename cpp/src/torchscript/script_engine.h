#pragma once

#include <torch/custom_class.h>

#include <atomic>
#include <memory>
#include <mutex>
#include <string>
#include <tuple>
#include <vector>

#include "bundle/blob_table.h"
#include "engine/variants.h"
#include "hybrid_rt/engine_choice.h"

namespace hybrid_rt {

/// The TorchScript class `hybrid_rt.Engine`: what stands in the graph in the place of a segment, or of several. It
/// carries all variants as bytes, chooses one when it is prepared (at the latest by its first run), and runs it.
/// Thread-safe.
class ScriptEngine : public torch::CustomClassHolder {
 public:
  /// Named fields, each JSON: "segments" (array of the dotted paths of what it stands for), "variants" (array of
  /// artifact specs), "table" (array: size and SHA-256 of each entry of the blob table).
  using Fields = c10::Dict<std::string, std::string>;
  /// Version, fields, blob table. A blob is a uint8 CPU tensor, so the archive holds its bytes once, as they are.
  using State = std::tuple<int64_t, Fields, std::vector<at::Tensor>>;

  static constexpr int64_t kStateVersion = 2;

  /// Validates names, counts, sizes and types; opens no runtime and reads no blob. Throws Error(kBundle).
  ScriptEngine(Fields fields, std::vector<at::Tensor> blobs);

  State state() const;
  /// Reads version 1 too, whose field "segment" joins the paths with "+".
  static c10::intrusive_ptr<ScriptEngine> from_state(State state);

  /// Chooses a variant that `machine` can run, which is the one that this process runs on; checks its digest, loads its
  /// engine. Prepared again with other options, it changes over, on all devices; runs in progress end on the engine
  /// that they began with.
  void prepare(const Preference& preference, const EngineOptions& options, const Machine& machine);

  /// Checks the inputs (count, dtype, rank, bounds, device) before the runtime sees them. Inputs on another device than
  /// the one that it was prepared for choose and load a variant for that device, with the same preference: a module
  /// that was moved by .to() goes on there. Throws Error(kInput), or as prepare().
  std::vector<at::Tensor> run(const std::vector<at::Tensor>& inputs);

  /// The bytes are in that file too: from here on they are read from it when they are needed.
  void let_go_of_bytes(std::shared_ptr<const Archive> file) { table_.let_go(std::move(file)); }

  /// For people: "backbone+rpn.head".
  const std::string& name() const { return name_; }
  const std::vector<std::string>& segments() const { return segments_; }
  const std::vector<ArtifactSpec>& specs() const { return specs_; }

  /// How it is run; on several devices, how on the one that it was prepared for last.
  EngineChoice choice() const;

 private:
  struct Prepared {
    ChosenEngine chosen;
    EngineOptions options;
    Preference preference;
  };
  using PreparedPointer = std::shared_ptr<const Prepared>;

  PreparedPointer make(const Preference& preference, const EngineOptions& options, const Machine& machine) const;
  /// The last one; null before the first.
  PreparedPointer prepared() const;
  /// Null if it was not prepared for this device.
  PreparedPointer prepared(c10::Device device) const;
  PreparedPointer prepared_for(c10::Device device);

  Fields fields_;
  std::vector<std::string> segments_;
  std::string name_;
  std::vector<ArtifactSpec> specs_;
  BlobTable table_;

  mutable std::mutex mutex_;               // guards prepared_
  std::mutex preparing_;                   // one preparation at a time
  std::vector<PreparedPointer> prepared_;  // one a device, the last one made in front
};

/// As JSON: {"engine", "segments", "backend", "precision", "description", "variants": [{"backend", "precision",
/// "chosen", "refusal"}]}, for TorchScript, which has no type for it.
std::string to_json(const EngineChoice& choice);

}  // namespace hybrid_rt
