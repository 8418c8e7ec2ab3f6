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

/// The TorchScript class `hybrid_rt.Engine`, which replaces one or several segments in the graph. It holds the bytes of
/// all variants, chooses one when it is prepared (at the latest in its first run), and runs it. Thread-safe.
class ScriptEngine : public torch::CustomClassHolder {
 public:
  /// Named fields, each JSON: "segments" (array of the dotted paths of the replaced segments), "variants" (array of
  /// artifact specs), "table" (array with size and SHA-256 of each entry of the blob table).
  using Fields = c10::Dict<std::string, std::string>;
  /// Version, fields, blob table. A blob is a uint8 CPU tensor, so the archive contains its bytes once and unchanged.
  using State = std::tuple<int64_t, Fields, std::vector<at::Tensor>>;

  static constexpr int64_t kStateVersion = 2;

  /// Validates names, counts, sizes and types. Opens no runtime and reads no blob. Throws Error(kBundle).
  ScriptEngine(Fields fields, std::vector<at::Tensor> blobs);

  State state() const;
  /// Also reads version 1, whose field "segment" has the paths joined by "+".
  static c10::intrusive_ptr<ScriptEngine> from_state(State state);

  /// Chooses a variant that `machine`, the one that this process runs on, can run, checks its digest and loads its
  /// engine. If it is prepared again with other options, it switches to the new engine on all devices; current runs
  /// finish on the engine that they started with.
  void prepare(const Preference& preference, const EngineOptions& options, const Machine& machine);

  /// Checks the inputs (count, dtype, rank, bounds, device) before the runtime receives them. If they are on another
  /// device than the engine was prepared for, chooses and loads a variant for that device, with the same preference, so
  /// that a module that was moved by .to() continues there. Throws Error(kInput), or the errors of prepare().
  std::vector<at::Tensor> run(const std::vector<at::Tensor>& inputs);

  /// Releases the bytes, which are in that file too. They are read from it from now on.
  void release_bytes(std::shared_ptr<const Archive> file) { table_.release(std::move(file)); }

  /// Returns the name to show to users: "backbone+rpn.head".
  const std::string& name() const { return name_; }
  const std::vector<std::string>& segments() const { return segments_; }
  const std::vector<ArtifactSpec>& specs() const { return specs_; }

  /// Returns the running variant; on several devices, the one of the device that was prepared last.
  EngineChoice choice() const;

 private:
  struct Prepared {
    ChosenEngine chosen;
    EngineOptions options;
    Preference preference;
  };
  using PreparedPointer = std::shared_ptr<const Prepared>;

  PreparedPointer make(const Preference& preference, const EngineOptions& options, const Machine& machine) const;
  /// Returns the last one; null before the first.
  PreparedPointer prepared() const;
  /// Returns the one for this device; null if it was not prepared for it.
  PreparedPointer prepared(c10::Device device) const;
  PreparedPointer prepared_for(c10::Device device);

  Fields fields_;
  std::vector<std::string> segments_;
  std::string name_;
  std::vector<ArtifactSpec> specs_;
  BlobTable table_;

  mutable std::mutex mutex_;               // guards prepared_
  std::mutex preparing_;                   // one preparation at a time
  std::vector<PreparedPointer> prepared_;  // one per device, most recent first
};

/// Returns JSON, because TorchScript has no type for a choice: {"engine", "segments", "backend", "precision",
/// "description", "variants": [{"backend", "precision", "chosen", "refusal"}]}.
std::string to_json(const EngineChoice& choice);

}  // namespace hybrid_rt
