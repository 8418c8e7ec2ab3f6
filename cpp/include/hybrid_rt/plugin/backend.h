#pragma once

#include <torch/version.h>

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "hybrid_rt/engine.h"
#include "hybrid_rt/error.h"
#include "hybrid_rt/plugin/blob_map.h"
#include "hybrid_rt/specs.h"

namespace hybrid_rt {

/// Availability of a backend's runtime in this process. If it is unavailable, `reason` gives the cause and the remedy.
struct Availability {
  bool available = false;            ///< true if engines can run
  std::string reason;                ///< empty when available
  std::string version;               ///< version of the vendor's runtime; empty when not available
  std::vector<std::string> devices;  ///< kinds of device that its engines run on: "cpu", "cuda"
};

/// The run half of a backend. One instance per process, created when the backend is first needed; all methods may be
/// called from several threads.
class Backend {
 public:
  Backend() = default;
  Backend(const Backend&) = delete;
  Backend& operator=(const Backend&) = delete;
  virtual ~Backend() = default;

  /// Opens the vendor's library and returns whether the runtime can be used. Does not throw.
  virtual Availability availability() = 0;

  /// Returns why this artifact can't run here, without reading its bytes, or nothing. Called while available, after the
  /// core has compared the spec's requirements and refused each device that availability() does not list: override
  /// it for further conditions. Does not throw.
  virtual std::optional<std::string> refusal(const ArtifactSpec& /*spec*/, const EngineOptions& /*options*/) {
    return std::nullopt;
  }

  /// Creates the engine of an artifact. `blobs` has its bytes by the names in `spec.blobs`. Throws Error(kBackend).
  virtual std::shared_ptr<Engine> load(const ArtifactSpec& spec, const BlobMap& blobs,
                                       const EngineOptions& options) = 0;

  /// Returns further inputs of load(), such as environment variables: two loads share an engine only if this text is
  /// equal. Does not throw.
  virtual std::string settings() { return ""; }
};

/// Result of `hybrid_rt_plugin()` in a plug-in `libhybrid_rt_NAME.so`. Checked before anything else is called.
struct PluginDescriptor {
  int abi_version;            ///< kPluginAbiVersion when it was compiled
  const char* torch_version;  ///< "MAJOR.MINOR" of the torch it was compiled with
  const char* name;           ///< name of the backend
  Backend* (*create)();       ///< creates the backend; called once
};

/// Compiled into every plug-in, and compared with the library's. Increment it with each change that an old binary would
/// misread: adding, removing or reordering a virtual method of Backend, Engine or ShapeCachingEngine, or changing its
/// arguments; changing the layout of PluginDescriptor or of a struct that both sides use (ArtifactSpec, EngineOptions,
/// Availability, BlobMap); changing the meaning of an argument. A new non-virtual function does not require it.
inline constexpr int kPluginAbiVersion = 5;

#define HYBRID_RT_STRINGIFY_IMPL(x) #x
#define HYBRID_RT_STRINGIFY(x) HYBRID_RT_STRINGIFY_IMPL(x)
#define HYBRID_RT_TORCH_VERSION HYBRID_RT_STRINGIFY(TORCH_VERSION_MAJOR) "." HYBRID_RT_STRINGIFY(TORCH_VERSION_MINOR)

/// Makes a shared library a plug-in: HYBRID_RT_PLUGIN("openvino", OpenVinoBackend) at namespace scope, once.
#define HYBRID_RT_PLUGIN(backend_name, BackendType)                                                           \
  extern "C" __attribute__((visibility("default"))) const ::hybrid_rt::PluginDescriptor* hybrid_rt_plugin() { \
    static const ::hybrid_rt::PluginDescriptor descriptor{                                                    \
        ::hybrid_rt::kPluginAbiVersion, HYBRID_RT_TORCH_VERSION, backend_name,                                \
        []() -> ::hybrid_rt::Backend* { return new BackendType(); }};                                         \
    return &descriptor;                                                                                       \
  }

}  // namespace hybrid_rt
