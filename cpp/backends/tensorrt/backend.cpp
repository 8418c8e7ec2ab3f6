#include "hybrid_rt/plugin/backend.h"

#include <array>
#include <nlohmann/json.hpp>

#include "cuda.h"
#include "engine.h"
#include "hybrid_rt/machine.h"
#include "library.h"

// NVIDIA TensorRT and TensorRT-RTX. The artifact is a built engine, which fits one version of its library and some
// GPUs, and the facts that were recorded when it was built.

namespace hybrid_rt::tensorrt {
namespace {

/// Names of the libraries in a spec's requirements: {"tensorrt": "==10.14.1"} or {"tensorrt_rtx": "==1.7.1"}.
constexpr std::array<const char*, 2> kLibraries{"tensorrt", "tensorrt_rtx"};

/// Returns the library that built an artifact. Throws Error(kBackend).
const Library& library_of(const ArtifactSpec& spec) {
  for (const char* name : kLibraries) {
    if (spec.requirements.contains(name)) return Library::named(name);
  }
  return Library::named("");
}

class TensorRtBackend : public Backend {
 public:
  Availability availability() override {
    std::string versions;
    std::string reasons;
    for (const char* name : kLibraries) {
      const Library& library = Library::named(name);
      std::string& text = library.is_open() ? versions : reasons;
      text += text.empty() ? "" : library.is_open() ? ", " : " ";
      text += library.is_open() ? library.name() + " " + library.version() : library.reason();
    }
    if (versions.empty()) return {false, reasons, "", {"cuda"}};
    return {true, "", versions, {"cuda"}};
  }

  std::optional<std::string> refusal(const ArtifactSpec& spec, const EngineOptions& /*options*/) override {
    try {
      const Library& library = library_of(spec);
      if (!library.is_open()) return library.reason();
      const std::string& wanted = spec.requirements.at(library.name());
      if (!is_in_range(library.version(), wanted).value_or(false)) {
        return "the engine needs " + library.name() + " " + wanted + ", but " + library.version() +
               " is installed; install a version in that range, or convert the detector again with this one";
      }
      GraphOptions::from_environment();
      return std::nullopt;
    } catch (const Error& error) {
      return error.what();
    }
  }

  std::shared_ptr<Engine> load(const ArtifactSpec& spec, const BlobMap& blobs, const EngineOptions& options) override {
    return std::make_shared<TensorRtEngine>(spec, library_of(spec), blobs.at("engine"),
                                            Bindings::from_json(blobs.at("bindings"), spec), options.device,
                                            GraphOptions::from_environment());
  }

  std::string settings() override {
    try {
      return to_string(GraphOptions::from_environment());
    } catch (const Error& error) {
      return error.what();
    }
  }
};

}  // namespace

HYBRID_RT_PLUGIN("tensorrt", TensorRtBackend)

}  // namespace hybrid_rt::tensorrt

/// Returns JSON for `hybrid-rt doctor`: "driver", the newest CUDA version that the driver supports (empty if there is
/// no driver), and "libraries", with the "name" of each of the vendor's libraries, its "path" and "version" if it can
/// be opened, and the "reason" why it can't be used (empty if it can).
extern "C" __attribute__((visibility("default"))) const char* hybrid_rt_tensorrt_libraries() {
  static const std::string text = [] {
    nlohmann::json libraries = nlohmann::json::array();
    for (const char* name : hybrid_rt::tensorrt::kLibraries) {
      const auto& library = hybrid_rt::tensorrt::Library::named(name);
      const std::string reason = library.is_open() ? "" : library.reason();
      libraries.push_back(
          {{"name", name}, {"path", library.path()}, {"version", library.version()}, {"reason", reason}});
    }
    const nlohmann::json facts = {{"driver", hybrid_rt::tensorrt::driver_cuda_version()}, {"libraries", libraries}};
    return facts.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
  }();
  return text.c_str();
}
