#include "engine/variants.h"

#include <ATen/core/Tensor.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/equal.h>
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
#include "common/digest.h"
#include "failure_of.h"
#include "hybrid_rt/backends.h"
#include "temporary.h"

namespace {

using hybrid_rt::ArtifactSpec;
using hybrid_rt::BlobTable;
using hybrid_rt::check_variants;
using hybrid_rt::choose_engine;
using hybrid_rt::ChosenEngine;
using hybrid_rt::EngineOptions;
using hybrid_rt::Error;
using hybrid_rt::ErrorKind;
using hybrid_rt::LogLevel;
using hybrid_rt::Machine;
using hybrid_rt::Preference;
using hybrid_rt::preference_from;

/// Variants of the backend "fixture", each with its own blob.
class Variants {
 public:
  Variants() { hybrid_rt::add_plugin_folder(HYBRID_RT_TEST_PLUGINS); }

  Variants& add(const std::map<std::string, std::string>& requirements = {}, const std::string& backend = "fixture") {
    blobs_.push_back(at::zeros({next_size()}, at::kByte));
    ArtifactSpec spec;
    spec.backend = backend;
    spec.precision = "fp32";
    spec.device = "cpu";
    const int64_t size = blobs_.back().numel();
    const std::string digest = hybrid_rt::sha256(blobs_.back().const_data_ptr<uint8_t>(), static_cast<size_t>(size));
    entries_.push_back({size, digest});
    spec.blobs = {{"bytes", size, digest, {{static_cast<int64_t>(blobs_.size()) - 1, 0, size}}}};
    spec.requirements = requirements;
    specs_.push_back(spec);
    return *this;
  }

  ChosenEngine choose(const std::string& backends = "", int threads = 1, bool strict = false, bool warm_up = false,
                      bool emulate_precision = false) const {
    EngineOptions options;
    options.threads = threads;
    options.warm_up = warm_up;
    options.emulate_precision = emulate_precision;
    return choose_engine("backbone", specs_, BlobTable("backbone", entries_, blobs_), preference_from(backends, strict),
                         options, Machine::here());
  }

  std::vector<ArtifactSpec>& specs() { return specs_; }
  std::vector<at::Tensor>& blobs() { return blobs_; }

 private:
  /// Blobs of different tests differ, so that no engine is shared accidentally.
  static int64_t next_size() {
    static int64_t size = 0;
    return ++size;
  }

  std::vector<ArtifactSpec> specs_;
  std::vector<at::Tensor> blobs_;
  std::vector<hybrid_rt::TableEntry> entries_;
};

std::vector<int64_t> chosen_in_order(const std::string& backends, const std::vector<ArtifactSpec>& specs) {
  std::vector<int64_t> found;
  for (const size_t i : preference_from(backends).order(specs)) found.push_back(static_cast<int64_t>(i));
  return found;
}

}  // namespace

TEST_CASE("the first variant in the file that can run is chosen") {
  const CapturedLog captured;
  const ChosenEngine choice = Variants().add({{"refuse", "no such device"}}).add().add().choose();
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
  CHECK(messages[0] == "engine 'backbone': fixture (fp32) can't run: no such device");
  CHECK(messages[1] == "engine 'backbone' runs on " + choice.engine->description());
}

TEST_CASE("check() gives the same result without loading an engine") {
  Variants variants;
  variants.add({{"refuse", "no such device"}}).add({{"fail", "out of memory"}}).add();
  const auto checks = check_variants(variants.specs(), {}, {}, Machine::here());
  REQUIRE(checks.size() == 3);
  CHECK(checks[0].refusal == "no such device");
  CHECK(checks[1].chosen);  // a failure to load can't be known before
  CHECK_FALSE(checks[2].chosen);
  CHECK(checks[2].refusal.empty());
}

TEST_CASE("a variant that fails to load causes a warning, and the next one runs") {
  for (const char* way : {"fail", "throw"}) {
    CAPTURE(way);
    const CapturedLog captured;
    const ChosenEngine choice = Variants().add({{way, "out of memory"}}).add().choose();
    CHECK(choice.index == 1);
    CHECK_FALSE(choice.variants[0].chosen);
    CHECK(contains(choice.variants[0].refusal, "out of memory"));
    const auto warnings = captured.of(LogLevel::kWarning);
    REQUIRE(warnings.size() == 1);
    CHECK(contains(warnings[0], "engine 'backbone': fixture (fp32) failed to load: "));
    CHECK(contains(warnings[0], "out of memory"));
  }
}

TEST_CASE("if no variant can run, the error lists each one with its reason") {
  const CapturedLog captured;
  Variants variants;
  variants.add({{"refuse", "no such device"}}).add({{"fail", "out of memory"}}).add({}, "nonesuch");
  const Error error = failure_of([&] { variants.choose(); });
  const std::string text = error.what();
  CHECK(error.kind() == ErrorKind::kBackend);
  CHECK(contains(text,
                 "hybrid_rt[variants]: engine 'backbone': expected a variant that can run on this machine, got "
                 "none of 3:"));
  CHECK(contains(text, "\n  fixture (fp32): no such device\n"));
  CHECK(contains(text, "\n  fixture (fp32): hybrid_rt[fixture]: artifact: expected to load, got out of memory."));
  CHECK(contains(text, "\n  nonesuch (fp32): hybrid_rt[nonesuch]: backend: expected one of "));
  CHECK(contains(text, "`hybrid-rt doctor` shows what this machine can run."));
}

TEST_CASE("only variants of the requested backend may run") {
  Variants variants;
  variants.add({}, "torchscript").add();
  const ChosenEngine choice = variants.choose("fixture");
  CHECK(choice.index == 1);
  CHECK(choice.variants[0].refusal == "only 'fixture' was requested");
  const CapturedLog captured;
  CHECK(contains(failure_of([&] { variants.choose("openvino"); }).what(), "only 'openvino' was requested"));
}

TEST_CASE("HYBRID_RT_BACKEND is the default preference") {
  const TemporaryVariable variable("HYBRID_RT_BACKEND", "torchscript");
  CHECK(preference_from("").backends == std::vector<std::string>{"torchscript"});
  CHECK(preference_from(" openvino:bf16, ,tvm").backends == std::vector<std::string>{"openvino:bf16", "tvm"});
  const TemporaryVariable unset("HYBRID_RT_BACKEND", nullptr);
  CHECK(preference_from("").backends.empty());
}

TEST_CASE("a preference for several backends is an order") {
  Variants variants;
  variants.add({}, "torchscript").add().add();
  variants.specs()[2].precision = "bf16";
  CHECK(chosen_in_order("", variants.specs()) == std::vector<int64_t>{0, 1, 2});
  CHECK(chosen_in_order("fixture,torchscript", variants.specs()) == std::vector<int64_t>{1, 2, 0});
  CHECK(chosen_in_order("fixture:bf16,fixture", variants.specs()) == std::vector<int64_t>{2, 1});
  CHECK(variants.choose("fixture:bf16").index == 2);
  CHECK(variants.choose("fixture:bf16").variants[1].refusal == "only 'fixture:bf16' was requested");
}

TEST_CASE("a strict load does not fall back") {
  const CapturedLog captured;
  CHECK(Variants().add().add().choose("", 1, true).index == 0);
  for (const char* way : {"refuse", "fail"}) {
    CAPTURE(way);
    Variants variants;
    variants.add({{way, "out of memory"}}).add();
    CHECK(variants.choose().index == 1);
    const Error error = failure_of([&] { variants.choose("", 1, true); });
    CHECK(error.kind() == ErrorKind::kBackend);
    CHECK(contains(error.what(),
                   "engine 'backbone', strict: expected its first variant, fixture (fp32), to run, got refusals:\n"));
    CHECK(contains(error.what(), "out of memory"));
  }
}

TEST_CASE("a variant that fails during warm-up falls back to the next") {
  const CapturedLog captured;
  Variants variants;
  variants.add({{"fail_to_run", "no kernel"}}).add();
  CHECK(variants.choose().index == 0);
  const ChosenEngine choice = variants.choose("", 1, false, true);
  CHECK(choice.index == 1);
  CHECK(contains(choice.variants[0].refusal, "no kernel"));
  CHECK(captured.of(LogLevel::kWarning).size() == 1);
}

TEST_CASE("a strict check returns the first variant or none") {
  Variants variants;
  variants.add({{"refuse", "no such device"}}).add();
  const Preference strict{.backends = {}, .strict = true};
  const auto checks = check_variants(variants.specs(), strict, {}, Machine::here());
  CHECK_FALSE(checks[0].chosen);
  CHECK_FALSE(checks[1].chosen);
  CHECK(checks[1].refusal.empty());
}

TEST_CASE("a device that a backend does not support is refused, after the backend's own reason") {
  Variants variants;
  variants.add().add({{"refuse", "no such device"}});
  const auto checks = check_variants(variants.specs(), {}, {.device = c10::Device("cuda:1")}, {});
  CHECK(checks[0].refusal == "runs on cpu, not on cuda:1");
  CHECK(checks[1].refusal == "no such device");
}

TEST_CASE("the machine's requirements are checked before the backend is asked") {
  hybrid_rt::Machine machine;
  machine.cpu_flags = {"avx2", "fma"};
  machine.free_memory = 1000;
  const auto refusal = [&](const std::string& name, const std::string& wanted) {
    Variants variants;
    variants.add({{name, wanted}});
    return check_variants(variants.specs(), {}, {}, machine)[0].refusal;
  };
  CHECK(refusal("version", ">=1.0,<2").empty());  // the fixture's version is 1.0
  CHECK(refusal("version", "==1").empty());
  CHECK(refusal("version", ">=1.0.1") ==
        "it needs fixture >=1.0.1, but 1.0 is installed; install a version in that range, or convert the detector "
        "again with "
        "this one");
  CHECK(contains(refusal("version", "<1"), "it needs fixture <1, but 1.0 is installed"));
  CHECK(contains(refusal("version", ">0.9,<=0.9.5"), "but 1.0 is installed"));
  CHECK(contains(refusal("version", "~1"), "is not a range"));
  CHECK(contains(refusal("version", "new"), "is not a range"));
  CHECK(refusal("cpu", "avx2, fma").empty());
  CHECK(contains(refusal("cpu", "avx2,avx512f,amx_bf16"),
                 "it was compiled for a CPU with avx512f, amx_bf16, which this one lacks"));
  CHECK(refusal("memory", "1000").empty());
  CHECK(contains(refusal("memory", "9000000"), "it needs 8 MiB of memory, 0 are free"));
}

TEST_CASE("an artifact for CUDA is compared with the GPU that would run it") {
  hybrid_rt::Machine machine;
  machine.no_cuda_reason = "no driver";
  ArtifactSpec spec;
  spec.device = "cuda";
  CHECK(*hybrid_rt::unmet(spec, "", machine) == "it was compiled for a CUDA device, and there is none: no driver");
  machine.cuda_devices = {{"first", "8.6", 0}, {"second", "9.0", 0}};
  CHECK_FALSE(hybrid_rt::unmet(spec, "", machine).has_value());
  const auto refusal = [&](const std::string& wanted, size_t index) {
    spec.requirements = {{"compute_capability", wanted}};
    return hybrid_rt::unmet(spec, "", machine, index).value_or("");
  };
  CHECK(refusal("8.6,8.9", 0).empty());
  CHECK(refusal("8.6, 9.0", 1).empty());
  CHECK(refusal(">=8.0", 1).empty());
  CHECK(refusal("8.6", 1) ==
        "it was built for GPUs of compute capability 8.6, but second has capability 9.0; convert the detector for "
        "that one, or run another variant");
  CHECK(contains(refusal(">=9.0", 0), "but first has capability 8.6"));
  CHECK(contains(refusal("", 0), "but first has"));
  CHECK(refusal("8.6", 2) == "there is no CUDA device 2");
}

TEST_CASE("a version is compared only if it is known") {
  ArtifactSpec spec;
  spec.requirements = {{"version", ">=2"}};
  CHECK_FALSE(hybrid_rt::unmet(spec, "", {}).has_value());
  CHECK(hybrid_rt::unmet(spec, "1.9", {}).has_value());
}

TEST_CASE("this machine has a description of its facts") {
  const hybrid_rt::Machine machine = hybrid_rt::Machine::here();
  CHECK_FALSE(machine.cpu_flags.empty());
  CHECK(machine.free_memory > 0);
  CHECK(machine.cuda_devices.empty() != machine.no_cuda_reason.empty());
}

TEST_CASE("a blob is assembled from pieces, some of which are shared") {
  const at::Tensor first = at::arange(10, at::kByte);
  const at::Tensor second = at::arange(100, 104, at::kByte);
  const auto digest = [](const at::Tensor& bytes) {
    return hybrid_rt::sha256(bytes.const_data_ptr<uint8_t>(), static_cast<size_t>(bytes.numel()));
  };
  const BlobTable table("backbone", {{10, digest(first)}, {4, digest(second)}}, {first, second});
  const at::Tensor expected = at::cat({second.slice(0, 0, 1), first.slice(0, 2, 7), second.slice(0, 1, 4)});
  ArtifactSpec spec;
  spec.blobs = {{"whole", 10, digest(first), {{0, 0, 10}}},
                {"pieces", 9, digest(expected), {{1, 0, 1}, {0, 2, 5}, {1, 1, 3}}}};
  table.check({spec});
  const auto blobs = table.blobs_of(spec);
  CHECK(blobs[0].const_data_ptr() == first.const_data_ptr());  // no copy
  CHECK(at::equal(blobs[1], expected));
  const auto failure = [&](const hybrid_rt::BlobPiece& piece, int64_t size) {
    ArtifactSpec wrong;
    wrong.blobs = {{"wrong", size, "", {piece}}};
    return std::string(failure_of([&] { table.check({wrong}); }).what());
  };
  CHECK(contains(failure({2, 0, 1}, 1), "expected an index below 2, got 2"));
  CHECK(contains(failure({-1, 0, 1}, 1), "expected an index below 2, got -1"));
  CHECK(contains(failure({0, 8, 3}, 3), "expected a piece within 10 bytes, got 3 from 8 on"));
  CHECK(contains(failure({0, -1, 3}, 3), "expected a piece within 10 bytes, got 3 from -1 on"));
  CHECK(contains(failure({0, 0, 3}, 4), "expected 4 bytes, got 3"));
}

TEST_CASE("altered bytes of the chosen variant cause an error, not a fallback") {
  Variants variants;
  variants.add().add();
  variants.blobs()[0] = at::ones_like(variants.blobs()[0]);
  const Error error = failure_of([&] { variants.choose(); });
  CHECK(error.kind() == ErrorKind::kBundle);
  CHECK(contains(error.what(), "hybrid_rt[fixture]: engine 'backbone', blob 'bytes': expected the SHA-256 " +
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

TEST_CASE("different bytes or options get separate engines") {
  Variants variants;
  variants.add();
  const auto first = variants.choose("", 1).engine;
  CHECK(variants.choose("", 2).engine != first);
  CHECK(Variants().add().choose("", 1).engine != first);
}

TEST_CASE("an engine in fp32 is shared with and without emulated precisions") {
  Variants variants;
  variants.add().add();
  variants.specs()[1].precision = "bf16";
  CHECK(variants.choose("fixture:fp32", 1, false, false, true).engine == variants.choose("fixture:fp32").engine);
  const auto emulated = variants.choose("fixture:bf16", 1, false, false, true).engine;
  CHECK(emulated != variants.choose("fixture:bf16").engine);
}

TEST_CASE("engines are not shared between loads with different backend settings") {
  Variants variants;
  variants.add();
  const auto first = variants.choose().engine;
  {
    const TemporaryVariable settings("HYBRID_RT_FIXTURE_SETTINGS", "another");
    CHECK(variants.choose().engine != first);
  }
  CHECK(variants.choose().engine == first);
}

TEST_CASE("an engine is destroyed with its last user") {
  Variants variants;
  variants.add();
  auto first = variants.choose().engine;
  const std::weak_ptr<hybrid_rt::Engine> watched = first;
  const std::string description = first->description();
  first.reset();
  CHECK(watched.expired());
  CHECK(variants.choose().engine->description() != description);
}

TEST_CASE("threads that load the same artifact concurrently get one engine") {
  Variants variants;
  variants.add();
  std::vector<std::shared_ptr<hybrid_rt::Engine>> engines(8);
  std::vector<std::thread> threads;
  for (auto& engine : engines) threads.emplace_back([&] { engine = variants.choose().engine; });
  for (std::thread& thread : threads) thread.join();
  CHECK(engines[0] != nullptr);
  CHECK(std::count(engines.begin(), engines.end(), engines[0]) == 8);
}
