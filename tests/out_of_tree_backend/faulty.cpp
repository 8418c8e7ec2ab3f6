#include <hybrid_rt/plugin/backend.h>

#include <stdexcept>

// Plug-ins with one fault each, which a preprocessor definition selects. FAULT is the file's name.

namespace {

[[maybe_unused]] constexpr char kMessage[] = "it is broken on purpose";

class FaultyBackend : public hybrid_rt::Backend {
 public:
#ifdef THROWING_CONSTRUCTOR
  FaultyBackend() { throw std::runtime_error(kMessage); }
#endif

  hybrid_rt::Availability availability() override { return {true, "", "1.0", {"cpu"}}; }

  std::shared_ptr<hybrid_rt::Engine> load(const hybrid_rt::ArtifactSpec& /*spec*/, const hybrid_rt::BlobMap& /*blobs*/,
                                          const hybrid_rt::EngineOptions& /*options*/) override {
#ifdef FOREIGN_EXCEPTION
    throw std::runtime_error(kMessage);
#else
    throw hybrid_rt::Error(hybrid_rt::ErrorKind::kBackend, FAULT, "artifact", "to load", kMessage, "");
#endif
  }
};

#if defined(WRONG_INTERFACE)
constexpr hybrid_rt::PluginDescriptor kDescriptor{hybrid_rt::kPluginAbiVersion + 1, HYBRID_RT_TORCH_VERSION, FAULT,
                                                  nullptr};
#elif defined(WRONG_TORCH)
constexpr hybrid_rt::PluginDescriptor kDescriptor{hybrid_rt::kPluginAbiVersion, "1.13", FAULT, nullptr};
#elif defined(MISNAMED)
HYBRID_RT_PLUGIN("somebody_else", FaultyBackend)
#elif !defined(NO_ENTRY)
HYBRID_RT_PLUGIN(FAULT, FaultyBackend)
#endif

}  // namespace

#if defined(WRONG_INTERFACE) || defined(WRONG_TORCH)
extern "C" __attribute__((visibility("default"))) const hybrid_rt::PluginDescriptor* hybrid_rt_plugin() {
  return &kDescriptor;
}
#endif
