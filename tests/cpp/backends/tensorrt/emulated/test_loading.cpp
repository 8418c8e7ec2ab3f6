// Tests refusals of engines, and other messages of the plug-in.

#include <doctest/doctest.h>

#include <atomic>
#include <filesystem>
#include <fstream>

#include "captured_log.h"
#include "failure_of.h"
#include "plugin.h"
#include "temporary.h"
#include "vendor.h"

namespace {

using hybrid_rt::ErrorKind;
using hybrid_rt::LogLevel;

std::string success() { return "expected success of " + StandIn::here().library + " " + StandIn::here().version; }

}  // namespace

TEST_CASE("the plug-in names the vendor's library and its devices") {
  const hybrid_rt::Availability found = plugin().availability();
  CHECK(found.available);
  CHECK(found.devices == std::vector<std::string>{"cuda"});
  CHECK(plugin().settings() == "off");
  const TemporaryVariable variable("HYBRID_RT_TENSORRT_CUDA_GRAPHS", "yes");
  CHECK(contains(plugin().settings(), "HYBRID_RT_TENSORRT_CUDA_GRAPHS: expected off, copy or static, got 'yes'"));
  CHECK(contains(plugin().refusal(Artifact().spec, {}).value_or(""), "expected off, copy or static"));
}

TEST_CASE("the plug-in describes each library and the driver" * emulated_only()) {
  const nlohmann::json told = libraries_told();
  CHECK(told.at("driver") == "13.1");
  const StandIn& here = StandIn::here();
  for (const nlohmann::json& library : told.at("libraries")) {
    const bool is_here = library.at("name") == here.library;
    CHECK(library.at("version") == (is_here ? here.version : ""));
    CHECK(library.at("reason").get<std::string>().empty() == is_here);
    const char* const named =
        std::getenv(library.at("name") == "tensorrt" ? "HYBRID_RT_TENSORRT_LIBRARY" : "HYBRID_RT_TENSORRT_RTX_LIBRARY");
    CHECK(library.at("path") == (is_here ? named : ""));
  }
  CHECK(told.at("libraries").size() == 2);
}

TEST_CASE("an engine of another version or library is refused before it is read" * emulated_only()) {
  Artifact artifact;
  CHECK(plugin().refusal(artifact.spec, {}) == std::nullopt);
  artifact.spec.requirements = {{StandIn::here().library, "==1.2.3"}};
  CHECK(plugin().refusal(artifact.spec, {}) ==
        "the engine needs " + StandIn::here().library + " ==1.2.3, but " + StandIn::here().version + " is installed" +
            "; install a version in that range, or convert the detector again with this one");
  artifact.spec.requirements = {};
  CHECK(contains(plugin().refusal(artifact.spec, {}).value_or(""),
                 "Upgrade hybrid_rt: the file was made by a newer version."));
  const bool is_rtx = StandIn::here().library == "tensorrt_rtx";
  artifact.spec.requirements = {{is_rtx ? "tensorrt" : "tensorrt_rtx", "==1.7.1"}};
  CHECK(contains(plugin().refusal(artifact.spec, {}).value_or(""), "can't be opened"));
  CHECK(contains(failure_of([&] { artifact.load(); }).what(), "can't be opened"));
}

TEST_CASE("the error contains the vendor's reason for refusing an engine" * emulated_only()) {
  const Watch watch;
  const CapturedLog log;
  Artifact artifact;
  artifact.plan["version"] = "1.2.3";
  CHECK(std::string(failure_of([&] { artifact.load(); }).what()) ==
        "hybrid_rt[tensorrt]: artifact: " + success() +
            ", got deserializeCudaEngine: the plan is for version 1.2.3, this is " + StandIn::here().version + ".");
  artifact.plan = "no plan";
  CHECK(contains(failure_of([&] { artifact.load(); }).what(), "magic tag does not match"));
  CHECK(log.of(LogLevel::kError).size() == 2);
  emulated::Vendor::instance().says_nothing = true;
  CHECK(contains(failure_of([&] { artifact.load(); }).what(), "got a failure without a message."));
  emulated::Vendor::instance().says_nothing = false;
}

TEST_CASE("an engine may contain code only if its record says so" * emulated_only()) {
  const Watch watch;
  Artifact artifact;
  artifact.plan["host_code"] = true;
  CHECK(contains(failure_of([&] { artifact.load(); }).what(), "the plan has host code, which is not allowed"));
  artifact.bindings["version_compatible"] = true;
  const at::Tensor x = image({1, 3, 16, 16});
  CHECK(are_close(artifact.load()->run({on_device(x)}), expected_of(x)));
}

TEST_CASE("an engine that differs from its record is refused" * emulated_only()) {
  const Watch watch;
  const auto text_of = [](const Artifact& artifact) {
    const auto failure = failure_of([&] { artifact.load(); });
    CHECK(failure.kind() == ErrorKind::kBundle);
    return std::string(failure.what());
  };
  Artifact names;
  names.bindings["outputs"] = {"y", "other"};
  CHECK(contains(text_of(names),
                 "artifact, tensors: expected the names that were recorded when it was built, got others"));
  Artifact profiles;
  profiles.bindings["profiles"].push_back(profiles.bindings["profiles"][0]);
  CHECK(contains(text_of(profiles), "artifact, profiles: expected 2, got 1"));
  for (const char* dtype : {"float16", "bfloat16", "int64", "int32", "int8", "uint8", "bool"}) {
    Artifact types;
    types.plan["inputs"][0]["dtype"] = dtype;
    CHECK(contains(text_of(types),
                   std::string("artifact, tensor 'x': expected 1..4x3x8..64x8..64 float32, got ") + dtype));
  }
  Artifact unknown;
  unknown.plan["inputs"][0]["dtype"] = "fp8";
  CHECK(contains(text_of(unknown), "got TensorRT's type "));
}

TEST_CASE("an engine's record must be complete") {
  const Watch watch;
  Artifact malformed;
  malformed.bindings.erase("profiles");
  auto failure = failure_of([&] { malformed.load(); });
  CHECK(failure.kind() == ErrorKind::kBundle);
  CHECK(contains(failure.what(), "hybrid_rt[tensorrt]: artifact, bindings: expected names and profiles, got "));
  Artifact other;
  other.bindings["inputs"].push_back("z");
  failure = failure_of([&] { other.load(); });
  CHECK(contains(failure.what(), "artifact, bindings: expected those of its spec's tensors, got others."));
}

TEST_CASE("TensorRT-RTX's switches are refused by libraries without them" * emulated_only()) {
  const Watch watch;
  for (const auto& [name, value] :
       {std::pair("kernel_specialization", "eager"), std::pair("kernel_specialization", "none"),
        std::pair("cuda_graphs", "whole_graph")}) {
    Artifact artifact;
    artifact.bindings[name] = value;
    const auto failure = failure_of([&] { artifact.load(); });
    CHECK(failure.kind() == ErrorKind::kBackend);
    CHECK(contains(failure.what(),
                   "artifact, options kernel_specialization and cuda_graphs: expected TensorRT-RTX, and a plug-in that "
                   "was built with its headers, got " +
                       StandIn::here().library + " " + StandIn::here().version +
                       ", and one that was built with those of "));
  }
  Artifact defaults;
  defaults.bindings["kernel_specialization"] = "lazy";
  defaults.bindings["cuda_graphs"] = "off";
  CHECK(defaults.load() != nullptr);
  Artifact newer;
  newer.bindings["kernel_specialization"] = "later";
  CHECK(contains(failure_of([&] { newer.load(); }).what(),
                 "artifact, bindings: expected 'kernel_specialization' lazy, eager or none, got 'later'"));
  Artifact other;
  other.bindings["cuda_graphs"] = "parts";
  CHECK(contains(failure_of([&] { other.load(); }).what(), "expected 'cuda_graphs' off or whole_graph, got 'parts'"));
}

TEST_CASE("an engine that wants an input on the host is refused" * emulated_only()) {
  const Watch watch;
  Artifact artifact;
  artifact.plan["inputs"][0]["on_host"] = true;
  const auto failure = failure_of([&] { artifact.load(); });
  CHECK(failure.kind() == ErrorKind::kBundle);
  CHECK(contains(failure.what(), "artifact, tensor 'x': expected one on the device, got one on the host"));
}

TEST_CASE("a failure to create a context causes an error, and the engine can be used afterwards" * emulated_only()) {
  const Watch watch;
  const auto engine = Artifact().load();
  const at::Tensor x = image({1, 3, 16, 16});
  emulated::Vendor& vendor = emulated::Vendor::instance();
  vendor.refuses_contexts = true;
  CHECK(std::string(failure_of([&] { engine->run({on_device(x)}); }).what()) ==
        "hybrid_rt[tensorrt]: execution context: " + success() + ", got createExecutionContext: out of memory.");
  vendor.refuses_contexts = false;
  vendor.refuses_profiles = true;
  CHECK(contains(failure_of([&] { engine->run({on_device(x)}); }).what(), "setOptimizationProfileAsync: refused"));
  vendor.refuses_profiles = false;
  CHECK(are_close(engine->run({on_device(x)}), expected_of(x)));
}

/// Checks that calls fail with a text while the vendor does something, and work afterwards.
static void check_failure_while(std::atomic<bool> emulated::Vendor::* does, const std::string& text) {
  const Watch watch;
  const auto engine = Artifact().load();
  const at::Tensor x = image({1, 3, 16, 16});
  emulated::Vendor::instance().*does = true;
  CHECK(contains(failure_of([&] { engine->run({on_device(x)}); }).what(), text));
  emulated::Vendor::instance().*does = false;
  CHECK(are_close(engine->run({on_device(x)}), expected_of(x)));
}

TEST_CASE("an unknown size of scratch memory causes an error" * emulated_only()) {
  check_failure_while(&emulated::Vendor::fails_scratch_size,
                      "run, scratch memory: expected its size from " + StandIn::here().library +
                          ", got updateDeviceMemorySizeForShapes: asked to fail.");
}

TEST_CASE("shapes and addresses that the vendor refuses cause errors, and the engine can be used afterwards" *
          emulated_only()) {
  Watch watch;
  Artifact wider;  // as if the record had a wider range than the engine
  wider.bindings["profiles"][0][0]["max"] = {4, 3, 128, 128};
  const auto engine = wider.load();
  CHECK(std::string(failure_of([&] { engine->run({on_device(image({1, 3, 16, 96}))}); }).what()) ==
        "hybrid_rt[tensorrt]: input 'x', shape: " + success() + ", got setInputShape: a shape outside of profile 0.");
  CHECK(watch.take() == std::vector<std::string>{"input x has a shape outside of the context's profile"});
  emulated::Vendor& vendor = emulated::Vendor::instance();
  const at::Tensor x = image({1, 3, 16, 16});
  for (const auto& [refuses, name] :
       {std::pair(&vendor.refuses_inputs, "x"), std::pair(&vendor.refuses_outputs, "y")}) {
    *refuses = true;
    const std::string put = std::string(name) == "x" ? "input" : "output";
    CHECK(std::string(failure_of([&] { engine->run({on_device(x)}); }).what()) ==
          "hybrid_rt[tensorrt]: " + put + " '" + name + "': " + success() + ", got setTensorAddress: asked to refuse " +
              name + ".");
    *refuses = false;
    CHECK(are_close(engine->run({on_device(x)}), expected_of(x)));
  }
}

TEST_CASE("an output with a size that depends on values is refused" * emulated_only()) {
  check_failure_while(
      &emulated::Vendor::hides_output_shapes,
      "output 'y': expected a shape that follows from the inputs' shapes, got one that depends on their values");
}

TEST_CASE("the vendor's messages are logged from the runtime's first word to its last" * emulated_only()) {
  const Watch watch;
  const CapturedLog log;
  Artifact().load().reset();
  const std::string name = StandIn::here().library + ": ";
  const auto debug = log.of(LogLevel::kDebug);
  REQUIRE(debug.size() == 2);
  CHECK(debug.front() == name + "the runtime begins");
  CHECK(debug.back() == name + "the runtime ends");
  CHECK(log.of(LogLevel::kInfo).size() == 1);
}

TEST_CASE("a driver without CUDA graphs causes a warning, and calls run without them" * doctest::skip()) {
  const Watch watch;
  const CapturedLog log;
  const TemporaryVariable variable("HYBRID_RT_TENSORRT_CUDA_GRAPHS", "copy");
  const at::Tensor x = image({1, 3, 16, 16});
  const auto engine = Artifact().load();
  for (int call = 0; call < 2; ++call) CHECK(are_close(engine->run({on_device(x)}), expected_of(x)));
  CHECK(log.of(LogLevel::kWarning) ==
        std::vector<std::string>{
            "tensorrt: a call can't be recorded as a CUDA graph (the driver has no CUDA graphs); it runs without"});
}

TEST_CASE("no driver: an engine runs if torch has a device" * doctest::skip()) {
  const Watch watch;
  const CapturedLog log;
  const TemporaryVariable variable("HYBRID_RT_TENSORRT_CUDA_GRAPHS", "static");
  const at::Tensor x = image({1, 3, 16, 16});
  const auto engine = Artifact().load();
  CHECK(are_close(engine->run({on_device(x)}), expected_of(x)));
  CHECK(contains(engine->description(), "fp32, cuda:0, CUDA graphs: static"));
  CHECK(log.of(LogLevel::kWarning).size() == 1);
}

TEST_CASE("a library whose tables are unknown is not called" * doctest::skip()) {
  const hybrid_rt::Availability found = plugin().availability();
  CHECK_FALSE(found.available);
  CHECK(found.devices == std::vector<std::string>{"cuda"});
  CHECK(contains(found.reason, "tensorrt 99.0.0 is installed ("));
  CHECK(contains(found.reason, "), but this plug-in was built with the headers of "));
  CHECK(contains(found.reason, "tensorrt 10."));
  CHECK(emulated::Vendor::instance().runtimes == 0);
}

TEST_CASE("a library that is not TensorRT causes an error with the missing symbols" * doctest::skip()) {
  const hybrid_rt::Availability found = plugin().availability();
  CHECK_FALSE(found.available);
  CHECK(contains(found.reason,
                 "TensorRT's library lacks getInferLibVersion. Upgrade it: pip install -U tensorrt. TensorRT-RTX's "
                 "library can't be opened ("));
}

TEST_CASE("TensorRT-RTX: switches are set as recorded" * doctest::skip()) {
  const Watch watch;
  const TemporaryVariable no_cache("HYBRID_RT_CACHE_SIZE", "0");
  const emulated::Vendor& vendor = emulated::Vendor::instance();
  const at::Tensor x = image({1, 3, 16, 16});
  const auto switches_of = [&](const Artifact& artifact) {
    CHECK(are_close(artifact.load()->run({on_device(x)}), expected_of(x)));
    return std::pair(vendor.kernel_strategy.load(), vendor.graph_strategy.load());
  };
  Artifact artifact;
  CHECK(switches_of(artifact) == std::pair(0, 0));
  artifact.bindings["kernel_specialization"] = "eager";
  CHECK(switches_of(artifact) == std::pair(1, 0));
  artifact.bindings["kernel_specialization"] = "none";
  artifact.bindings["cuda_graphs"] = "whole_graph";
  CHECK(switches_of(artifact) == std::pair(2, 1));
  const TemporaryVariable variable("HYBRID_RT_TENSORRT_CUDA_GRAPHS", "copy");
  CHECK(std::string(failure_of([&] { artifact.load(); }).what()) ==
        "hybrid_rt[tensorrt]: HYBRID_RT_TENSORRT_CUDA_GRAPHS: expected off for an engine that records itself (option "
        "cuda_graphs), got 'copy'. Unset it, or convert without that option.");
}

TEST_CASE("TensorRT-RTX: a switch that the library refuses causes an error" * doctest::skip()) {
  const Watch watch;
  Artifact artifact;
  artifact.bindings["cuda_graphs"] = "whole_graph";
  emulated::Vendor::instance().refuses_graph_strategy = true;
  CHECK(contains(failure_of([&] { artifact.load(); }).what(), "got a failure without a message"));
  emulated::Vendor::instance().refuses_graph_strategy = false;
  CHECK(artifact.load() != nullptr);
}

TEST_CASE("TensorRT-RTX: compiled kernels are reused when the engine is loaded again" * doctest::skip()) {
  const Watch watch;
  const TemporaryDirectory directory;
  const TemporaryVariable place("HYBRID_RT_CACHE", directory.path().c_str());
  const emulated::Vendor& vendor = emulated::Vendor::instance();
  const at::Tensor x = image({1, 3, 16, 16});
  const int before = vendor.kernels_from_cache;
  for (int kernels = 0; kernels < 3; ++kernels) {
    CHECK(are_close(Artifact().load()->run({on_device(x)}), expected_of(x)));
    CHECK(vendor.kernels_from_cache - before == kernels * (kernels + 1) / 2);
  }
  for (const auto& file : std::filesystem::directory_iterator(directory.path() / "tensorrt_rtx")) {
    std::ofstream(file.path()) << "damaged";
  }
  CHECK(are_close(Artifact().load()->run({on_device(x)}), expected_of(x)));
}
