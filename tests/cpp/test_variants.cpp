#include "variants.h"

#include <ATen/core/Tensor.h>
#include <ATen/ops/ones_like.h>
#include <ATen/ops/zeros.h>
#include <doctest/doctest.h>

#include <algorithm>
#include <map>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "captured_log.h"
#include "digest.h"
#include "failure_of.h"
#include "temporary.h"

namespace {

using hybrid_rt::ArtifactSpec;
using hybrid_rt::check_variants;
using hybrid_rt::Choice;
using hybrid_rt::choose_engine;
using hybrid_rt::EngineOptions;
using hybrid_rt::Error;
using hybrid_rt::ErrorKind;
using hybrid_rt::LogLevel;
using hybrid_rt::Preference;
using hybrid_rt::preference_from;

/// Variants of the backend "fixture", each with a blob of its own.
class Variants {
 public:
  Variants() { hybrid_rt::add_plugin_folder(HYBRID_RT_TEST_PLUGINS); }

  Variants& add(const std::map<std::string, std::string>& requirements = {}, const std::string& backend = "fixture") {
    blobs_.push_back(at::zeros({next_size()}, at::kByte));
    ArtifactSpec spec;
    spec.backend = backend;
    spec.precision = "fp32";
    spec.device = "cpu";
    const auto size = static_cast<size_t>(blobs_.back().numel());
    spec.blobs = {{"bytes", static_cast<int64_t>(blobs_.size()) - 1, blobs_.back().numel(),
                   hybrid_rt::sha256(blobs_.back().const_data_ptr<uint8_t>(), size)}};
    spec.requirements = requirements;
    specs_.push_back(spec);
    return *this;
  }

  Choice choose(const std::string& backend = "", int threads = 1) const {
    EngineOptions options;
    options.threads = threads;
    return choose_engine("backbone", specs_, blobs_, Preference{backend}, options);
  }

  std::vector<ArtifactSpec>& specs() { return specs_; }
  std::vector<at::Tensor>& blobs() { return blobs_; }

 private:
  /// Blobs of no two tests are alike, so no engine is shared by chance.
  static int64_t next_size() {
    static int64_t size = 0;
    return ++size;
  }

  std::vector<ArtifactSpec> specs_;
  std::vector<at::Tensor> blobs_;
};

}  // namespace

TEST_CASE("the first variant that can run is chosen, in the file's order") {
  const CapturedLog captured;
  const Choice choice = Variants().add({{"refuse", "no such device"}}).add().add().choose();
  CHECK(choice.index == 1);
  REQUIRE(choice.engine != nullptr);
  REQUIRE(choice.variants.size() == 3);
  CHECK(choice.variants[0].refusal == "no such device");
  CHECK_FALSE(choice.variants[0].chosen);
  CHECK(choice.variants[1].chosen);
  CHECK(choice.variants[1].refusal.empty());
  CHECK_FALSE(choice.variants[2].chosen);
  CHECK(captured.of(LogLevel::kWarning).empty());
  const auto messages = captured.of(LogLevel::kInfo);
  REQUIRE(messages.size() == 2);
  CHECK(messages[0] == "segment 'backbone': fixture (fp32) can't run: no such device");
  CHECK(messages[1] == "segment 'backbone' runs on " + choice.engine->description());
}

TEST_CASE("checking says the same without loading an engine") {
  Variants variants;
  variants.add({{"refuse", "no such device"}}).add({{"fail", "out of memory"}}).add();
  const auto checks = check_variants(variants.specs(), {}, {});
  REQUIRE(checks.size() == 3);
  CHECK(checks[0].refusal == "no such device");
  CHECK(checks[1].chosen);  // what fails only when it is loaded can't be known
  CHECK_FALSE(checks[2].chosen);
  CHECK(checks[2].refusal.empty());
}

TEST_CASE("a variant that fails to load is warned of and the next one runs") {
  for (const char* way : {"fail", "throw"}) {
    CAPTURE(way);
    const CapturedLog captured;
    const Choice choice = Variants().add({{way, "out of memory"}}).add().choose();
    CHECK(choice.index == 1);
    CHECK_FALSE(choice.variants[0].chosen);
    CHECK(contains(choice.variants[0].refusal, "out of memory"));
    const auto warnings = captured.of(LogLevel::kWarning);
    REQUIRE(warnings.size() == 1);
    CHECK(contains(warnings[0], "segment 'backbone': fixture (fp32) failed to load: "));
    CHECK(contains(warnings[0], "out of memory"));
  }
}

TEST_CASE("if none can run, the error lists every variant with its reason") {
  const CapturedLog captured;
  Variants variants;
  variants.add({{"refuse", "no such device"}}).add({{"fail", "out of memory"}}).add({}, "nonesuch");
  const Error error = failure_of([&] { variants.choose(); });
  const std::string text = error.what();
  CHECK(error.kind() == ErrorKind::kBackend);
  CHECK(contains(text,
                 "hybrid_rt[variants]: segment 'backbone': expected a variant that can run on this machine, got "
                 "none of 3:"));
  CHECK(contains(text, "\n  fixture (fp32): no such device\n"));
  CHECK(contains(text, "\n  fixture (fp32): hybrid_rt[fixture]: artifact: expected to load, got out of memory."));
  CHECK(contains(text, "\n  nonesuch (fp32): hybrid_rt[nonesuch]: backend: expected one of "));
  CHECK(contains(text, "`hybrid-rt doctor` shows what this machine can run."));
}

TEST_CASE("only variants of the backend that was asked for may run") {
  Variants variants;
  variants.add({}, "torchscript").add();
  const Choice choice = variants.choose("fixture");
  CHECK(choice.index == 1);
  CHECK(choice.variants[0].refusal == "only 'fixture' was asked for");
  const CapturedLog captured;
  CHECK(contains(failure_of([&] { variants.choose("openvino"); }).what(), "only 'openvino' was asked for"));
}

TEST_CASE("HYBRID_RT_BACKEND is the preference unless one is given") {
  const TemporaryVariable variable("HYBRID_RT_BACKEND", "torchscript");
  CHECK(preference_from("").backend == "torchscript");
  CHECK(preference_from("openvino").backend == "openvino");
  const TemporaryVariable unset("HYBRID_RT_BACKEND", nullptr);
  CHECK(preference_from("").backend.empty());
}

TEST_CASE("altered bytes of the chosen variant are an error, not a reason to take the next") {
  Variants variants;
  variants.add().add();
  variants.blobs()[0] = at::ones_like(variants.blobs()[0]);
  const Error error = failure_of([&] { variants.choose(); });
  CHECK(error.kind() == ErrorKind::kBundle);
  CHECK(contains(error.what(), "hybrid_rt[fixture]: segment 'backbone', blob 'bytes': expected the SHA-256 " +
                                   variants.specs()[0].blobs[0].sha256));
}

TEST_CASE("bytes of a variant that does not run are not read") {
  Variants variants;
  variants.add({{"refuse", "no such device"}}).add();
  variants.blobs()[0] = at::ones_like(variants.blobs()[0]);
  CHECK(variants.choose().index == 1);
}

TEST_CASE("two loads of the same artifact share one engine while it is in use") {
  Variants variants;
  variants.add();
  const auto first = variants.choose().engine;
  CHECK(variants.choose().engine == first);
  Variants copy = variants;
  copy.blobs()[0] = variants.blobs()[0].clone();
  CHECK(copy.choose().engine == first);
}

TEST_CASE("other bytes or other options get an engine of their own") {
  Variants variants;
  variants.add();
  const auto first = variants.choose("", 1).engine;
  CHECK(variants.choose("", 2).engine != first);
  CHECK(Variants().add().choose("", 1).engine != first);
}

TEST_CASE("an engine goes when its last user goes") {
  Variants variants;
  variants.add();
  auto first = variants.choose().engine;
  const std::weak_ptr<hybrid_rt::Engine> watched = first;
  const std::string description = first->description();
  first.reset();
  CHECK(watched.expired());
  CHECK(variants.choose().engine->description() != description);
}

TEST_CASE("threads that load the same artifact at once get one engine") {
  Variants variants;
  variants.add();
  std::vector<std::shared_ptr<hybrid_rt::Engine>> engines(8);
  std::vector<std::thread> threads;
  for (auto& engine : engines) threads.emplace_back([&] { engine = variants.choose().engine; });
  for (std::thread& thread : threads) thread.join();
  CHECK(engines[0] != nullptr);
  CHECK(std::count(engines.begin(), engines.end(), engines[0]) == 8);
}
