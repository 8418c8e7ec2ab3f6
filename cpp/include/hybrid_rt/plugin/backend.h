#pragma once

#include <torch/version.h>

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "hybrid_rt/engine.h"
#include "hybrid_rt/error.h"
#include "hybrid_rt/specs.h"

namespace hybrid_rt {

/// Whether a backend's runtime can be used in this process; never a bare false: `reason` says why not and what mends
/// it.
struct Availability {
  bool available = false;
  std::string reason;   ///< empty when available
  std::string version;  ///< of the vendor's runtime; empty when not available
  std::vector<std::string> devices;
};

/// The run half of a backend. One instance a process, made when the backend is first needed; all methods may be
/// called from several threads.
class Backend {
 public:
  Backend() = default;
  Backend(const Backend&) = delete;
  Backend& operator=(const Backend&) = delete;
  virtual ~Backend() = default;

  /// Opens the vendor's library if need be. Does not throw.
  virtual Availability availability() = 0;

  /// Why this artifact could not run here, without reading its bytes; nothing if it should. Does not throw.
  virtual std::optional<std::string> refusal(const ArtifactSpec& spec, const EngineOptions& options) = 0;

  /// `blobs` are the artifact's bytes in the order of spec.blobs (uint8 CPU tensors, digest checked); the engine keeps
  /// what it needs of them alive. Throws Error(kBackend).
  virtual std::shared_ptr<Engine> load(const ArtifactSpec& spec, std::vector<at::Tensor> blobs,
                                       const EngineOptions& options) = 0;

  /// What else load() goes by, such as environment variables: two loads share an engine only where this text is the
  /// same. Does not throw.
  virtual std::string settings() { return ""; }
};

/// What a plug-in `libhybrid_rt_NAME.so` exports as `hybrid_rt_plugin`. Compared before anything else is called.
struct PluginDescriptor {
  int abi_version;
  const char* torch_version;  ///< "MAJOR.MINOR" of the torch it was compiled with
  const char* name;
  Backend* (*create)();
};

inline constexpr int kPluginAbiVersion = 4;

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

/// One variant of an engine and whether it could run here.
struct VariantCheck {
  std::string backend;
  std::string precision;
  bool chosen = false;
  std::string refusal;  ///< empty: it can run
};

/// A backend as this process sees it: installed plug-in or not, runtime available or not.
struct BackendInfo {
  std::string name;
  std::string plugin;  ///< path of its shared library
  Availability availability;
};

/// Every backend whose plug-in is found: beside this library, then in the folders of HYBRID_RT_PLUGIN_PATH and of
/// add_plugin_folder(). Opens each; a plug-in that can't be opened is listed with the reason. Does not throw.
std::vector<BackendInfo> backends();

/// The backend of that name, opened when first asked for. Throws Error(kBackend) that says what is installed.
Backend& backend(const std::string& name);

/// Looks for plug-ins in `folder` too, after the folders known so far.
void add_plugin_folder(const std::string& folder);

}  // namespace hybrid_rt
