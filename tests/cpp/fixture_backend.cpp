#include <atomic>
#include <cstdlib>
#include <stdexcept>

#include "hybrid_rt/plugin/backend.h"

// A backend that follows the artifact's requirements: {"refuse": reason}, {"fail": message}, {"throw": message},
// {"fail_to_run": message}. Its settings are $HYBRID_RT_FIXTURE_SETTINGS. Its engine returns its inputs, and its
// description contains the number of engines so far.

namespace {

class FixtureEngine : public hybrid_rt::Engine {
 public:
  FixtureEngine(std::string description, std::string failure)
      : description_(std::move(description)), failure_(std::move(failure)) {}

  std::vector<at::Tensor> run(at::ArrayRef<at::Tensor> inputs) override {
    if (!failure_.empty()) throw std::runtime_error(failure_);
    return inputs.vec();
  }

  std::string description() const override { return description_; }

 private:
  std::string description_;
  std::string failure_;
};

class FixtureBackend : public hybrid_rt::Backend {
 public:
  hybrid_rt::Availability availability() override { return {true, "", "1.0", {"cpu"}}; }

  std::optional<std::string> refusal(const hybrid_rt::ArtifactSpec& spec,
                                     const hybrid_rt::EngineOptions& /*options*/) override {
    const auto found = spec.requirements.find("refuse");
    if (found == spec.requirements.end()) return std::nullopt;
    return found->second;
  }

  std::shared_ptr<hybrid_rt::Engine> load(const hybrid_rt::ArtifactSpec& spec, const hybrid_rt::BlobMap& /*blobs*/,
                                          const hybrid_rt::EngineOptions& /*options*/) override {
    const auto failure = spec.requirements.find("fail");
    if (failure != spec.requirements.end()) {
      throw hybrid_rt::Error(hybrid_rt::ErrorKind::kBackend, "fixture", "artifact", "to load", failure->second, "");
    }
    const auto foreign = spec.requirements.find("throw");
    if (foreign != spec.requirements.end()) throw std::runtime_error(foreign->second);
    const auto to_run = spec.requirements.find("fail_to_run");
    return std::make_shared<FixtureEngine>("fixture engine " + std::to_string(++made_),
                                           to_run == spec.requirements.end() ? "" : to_run->second);
  }

  std::string settings() override {
    const char* named = std::getenv("HYBRID_RT_FIXTURE_SETTINGS");
    return named == nullptr ? "" : named;
  }

 private:
  std::atomic<int> made_{0};
};

HYBRID_RT_PLUGIN("fixture", FixtureBackend)

}  // namespace
