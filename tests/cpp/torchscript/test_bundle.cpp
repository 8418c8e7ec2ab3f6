#include "hybrid_rt/bundle.h"
#include "hybrid_rt/opened_engine.h"

#include <doctest/doctest.h>
#include <torch/script.h>

#include <filesystem>
#include <fstream>
#include <functional>
#include <nlohmann/json.hpp>
#include <string>
#include <thread>
#include <vector>

#include "captured_log.h"
#include "demo_bundle.h"
#include "failure_of.h"
#include "temporary.h"

// Uses the demo detector's bundle, which HYBRID_RT_TEST_BUNDLE names. The detector's first label is the digit 0.

namespace {

using hybrid_rt::Error;
using hybrid_rt::ErrorKind;

/// Returns light rings on a dark background. The demo detector finds a 0 in each.
at::Tensor image_of_rings(int64_t height, int64_t width, int64_t rings) {
  const at::Tensor y = torch::arange(height).unsqueeze(1) - 60;
  at::Tensor image = torch::full({height, width}, 0.2F);
  for (int64_t ring = 0; ring < rings; ++ring) {
    const at::Tensor x = torch::arange(width) - (30 + 40 * ring);
    const at::Tensor radius = (y / 14.0).pow(2) + (x / 9.0).pow(2);
    image = torch::where(torch::logical_and(radius > 0.5, radius < 1.3), torch::full({}, 0.9F), image);
  }
  return image.expand({3, height, width}).contiguous();
}

struct DetectionTensors {
  at::Tensor boxes, labels, scores;

  int64_t count() const { return labels.size(0); }
  int64_t confident_zeros() const { return torch::logical_and(labels == 1, scores > 0.9).sum().item<int64_t>(); }
};

DetectionTensors detect(torch::jit::Module& module, const at::Tensor& image) {
  const auto found = module.forward({c10::List<at::Tensor>({image})}).toList().get(0).toGenericDict();
  const auto tensor = [&](const char* name) { return found.at(name).toTensor(); };
  return {tensor("boxes"), tensor("labels"), tensor("scores")};
}

bool are_equal(const DetectionTensors& a, const DetectionTensors& b) {
  return a.count() == b.count() && torch::equal(a.labels, b.labels) && torch::allclose(a.boxes, b.boxes, 1e-4, 1e-3) &&
         torch::allclose(a.scores, b.scores, 1e-4, 1e-4);
}

}  // namespace

TEST_CASE("a loaded bundle detects the objects in the image") {
  torch::jit::Module module = hybrid_rt::load(bundle());
  CHECK(detect(module, image_of_rings(128, 160, 3)).confident_zeros() == 3);
  CHECK(detect(module, image_of_rings(200, 300, 5)).confident_zeros() == 5);
  CHECK(detect(module, image_of_rings(128, 160, 0)).confident_zeros() == 0);
}

TEST_CASE("torch::jit::load gives the same results once the library is linked") {
  torch::jit::Module ours = hybrid_rt::load(bundle());
  torch::jit::Module plain = torch::jit::load(bundle());
  const at::Tensor image = image_of_rings(128, 160, 3);
  const DetectionTensors expected = detect(plain, image);
  REQUIRE(expected.confident_zeros() == 3);
  CHECK(are_equal(detect(ours, image), expected));
}

TEST_CASE("every variant gives the same results") {
  const at::Tensor image = image_of_rings(128, 160, 3);
  torch::jit::Module reference = hybrid_rt::load(bundle(), {.backend = "torchscript"});
  const DetectionTensors expected = detect(reference, image);
  REQUIRE(expected.confident_zeros() == 3);
  for (const auto& engine : hybrid_rt::check(bundle())) {
    for (const auto& variant : engine.variants) {
      CAPTURE(variant.backend);
      if (!variant.refusal.empty()) continue;  // its runtime is not installed
      torch::jit::Module module = hybrid_rt::load(bundle(), {.backend = variant.backend});
      CHECK(are_equal(detect(module, image), expected));
    }
  }
}

TEST_CASE("engines are prepared by load(), or else by their first run") {
  const auto backend_of = [](const torch::jit::Module& module) {
    const auto engines = hybrid_rt::engines(module);
    REQUIRE(engines.size() == 1);
    CHECK(engines[0].name == "backbone");
    CHECK(engines[0].segments == std::vector<std::string>{"backbone"});
    return engines[0].backend;
  };
  CHECK(backend_of(hybrid_rt::load(bundle(), {.backend = "torchscript"})) == "torchscript");
  const TemporaryVariable variable("HYBRID_RT_BACKEND", "torchscript");
  torch::jit::Module plain = torch::jit::load(bundle());
  CHECK(backend_of(plain).empty());
  detect(plain, image_of_rings(128, 160, 1));
  CHECK(backend_of(plain) == "torchscript");
}

TEST_CASE("class names come from the file, which is not read again") {
  const TemporaryDirectory directory;
  const std::string path = directory.file("copy.pt");
  std::filesystem::copy_file(bundle(), path);
  const torch::jit::Module module = hybrid_rt::load(path);
  const hybrid_rt::ClassNames names = hybrid_rt::class_names(path);
  CHECK(hybrid_rt::class_name(1, names) == "0");
  CHECK(hybrid_rt::class_name(10, names) == "9");
  CHECK(hybrid_rt::class_names(torch::jit::load(path)).empty());
  std::filesystem::remove(path);
  CHECK(hybrid_rt::class_names(module) == names);
  CHECK_THROWS_AS(hybrid_rt::class_names(path), Error);
}

TEST_CASE("engines list their variants and the reasons") {
  const auto engines = hybrid_rt::engines(hybrid_rt::load(bundle(), {.backend = "torchscript"}));
  REQUIRE(engines.size() == 1);
  const hybrid_rt::EngineChoice& choice = engines[0];
  CHECK(choice.name == "backbone");
  CHECK(choice.backend == "torchscript");
  CHECK(choice.precision == "fp32");
  CHECK_FALSE(choice.description.empty());
  size_t chosen = 0;
  for (const hybrid_rt::VariantCheck& variant : choice.variants) {
    CHECK(variant.chosen == (variant.backend == "torchscript"));
    CHECK(variant.refusal.empty() == variant.chosen);
    chosen += variant.chosen ? 1 : 0;
  }
  CHECK(chosen == 1);
}

TEST_CASE("a module without engines has no choices") {
  const torch::jit::Module module("empty");
  CHECK(hybrid_rt::engines(module).empty());
}

TEST_CASE("check() chooses the same variant as load()") {
  const auto engines = hybrid_rt::check(bundle(), {.backend = "torchscript"});
  REQUIRE(engines.size() == 1);
  CHECK(engines[0].engine == "backbone");
  CHECK(engines[0].segments == std::vector<std::string>{"backbone"});
  REQUIRE(engines[0].variants.size() == 2);
  CHECK(engines[0].variants[0].backend == "openvino");
  CHECK(engines[0].variants[0].refusal == "only 'torchscript' was requested");
  CHECK_FALSE(engines[0].variants[0].chosen);
  CHECK(engines[0].variants[1].backend == "torchscript");
  CHECK(engines[0].variants[1].chosen);
}

TEST_CASE("the manifest is read without loading the module") {
  const auto manifest = nlohmann::json::parse(hybrid_rt::read_manifest(bundle()));
  CHECK(manifest.at("format_version") == 2);
  CHECK(manifest.at("engines").at(0).at("members").at(0).at("name") == "backbone");
  CHECK(manifest.at("engines").at(0).at("variants").size() == 2);
}

TEST_CASE("a backend that is not in the file can't be chosen") {
  const CapturedLog captured;
  const Error error = failure_of([] { hybrid_rt::load(bundle(), {.backend = "nonesuch"}); });
  CHECK(error.kind() == ErrorKind::kBackend);
  CHECK(contains(error.what(), "engine 'backbone': expected a variant that can run on this machine, got none of 2:"));
  CHECK(contains(error.what(), "torchscript (fp32): only 'nonesuch' was requested"));
}

TEST_CASE("load() refuses a device that no variant runs on") {
  const CapturedLog captured;
  const Error error = failure_of([] { hybrid_rt::load(bundle(), {.device = torch::kMeta}); });
  CHECK(error.kind() == ErrorKind::kBackend);
  CHECK(contains(error.what(), "torchscript (fp32): runs on cpu and cuda, not on meta"));
}

TEST_CASE("every function refuses a file that is not a bundle") {
  const TemporaryDirectory directory;
  const std::string path = directory.file("no_bundle.pt");
  torch::jit::Module("empty").save(path);
  for (const auto& call : std::vector<std::function<void()>>{
           [&] { hybrid_rt::load(path); }, [&] { hybrid_rt::check(path); }, [&] { hybrid_rt::read_manifest(path); },
           [&] { hybrid_rt::verify_records(path); }}) {
    const Error error = failure_of(call);
    CHECK(error.kind() == ErrorKind::kBundle);
    CHECK(contains(error.what(), "expected a bundle of hybrid_rt, got an archive without hybrid_rt's manifest."));
  }
}

TEST_CASE("a flipped bit anywhere in the records is detected") {
  CHECK_NOTHROW(hybrid_rt::verify_records(bundle()));
  const TemporaryDirectory directory;
  const std::string path = directory.file("altered.pt");
  const auto size = static_cast<std::streamoff>(std::filesystem::file_size(bundle()));
  for (const std::streamoff position : {size / 4, size / 2, size * 3 / 4}) {
    CAPTURE(position);
    std::filesystem::copy_file(bundle(), path, std::filesystem::copy_options::overwrite_existing);
    {
      std::fstream stream(path, std::ios::in | std::ios::out | std::ios::binary);
      stream.seekg(position);
      const char byte = static_cast<char>(stream.get() ^ 1);
      stream.seekp(position);
      stream.put(byte);
    }
    const Error error = failure_of([&] { hybrid_rt::verify_records(path); });
    CHECK(error.kind() == ErrorKind::kBundle);
    CHECK(contains(error.what(), path + ", record '"));
  }
}

TEST_CASE("threads share a module") {
  torch::jit::Module module = hybrid_rt::load(bundle());
  std::vector<at::Tensor> images;
  std::vector<DetectionTensors> expected;
  for (int64_t i = 0; i < 4; ++i) {
    images.push_back(image_of_rings(120 + 16 * i, 150 + 8 * i, i));
    expected.push_back(detect(module, images.back()));
    REQUIRE(expected.back().confident_zeros() == i);
  }
  std::vector<int> right(images.size());
  std::vector<std::thread> threads;
  for (size_t i = 0; i < images.size(); ++i) {
    threads.emplace_back([&, i] {
      const at::NoGradGuard no_grad;
      for (int k = 0; k < 5; ++k) right[i] += are_equal(detect(module, images[i]), expected[i]) ? 1 : 0;
    });
  }
  for (std::thread& thread : threads) thread.join();
  CHECK(right == std::vector<int>(images.size(), 5));
}

TEST_CASE("the process contains neither Python nor torchvision") {
  torch::jit::Module module = hybrid_rt::load(bundle());
  CHECK(detect(module, image_of_rings(128, 160, 1)).count() > 0);
  std::ifstream maps("/proc/self/maps");
  size_t lines = 0;
  for (std::string line; std::getline(maps, line); ++lines) {
    const std::string name = std::filesystem::path(line.substr(line.rfind(' ') + 1)).filename().string();
    CHECK_FALSE(contains(name, "libpython"));
    CHECK_FALSE(contains(name, "libtorch_python"));
    CHECK_FALSE(contains(name, "torchvision"));
    CHECK_FALSE(line.find("/torchvision/") != std::string::npos);
  }
  CHECK(lines > 10);
}

TEST_CASE("a bundle is warmed up at the requested sizes") {
  const CapturedLog captured;
  hybrid_rt::load(bundle(), {.warm_up = {{120, 160}, {200, 100}}});
  const auto messages = captured.of(hybrid_rt::LogLevel::kInfo);
  CHECK(contains(messages.back(), ": warm at 200x100"));
  const Error error = failure_of([] { hybrid_rt::load(bundle(), {.warm_up = {{120, 0}}}); });
  CHECK(error.kind() == ErrorKind::kOption);
  CHECK(contains(error.what(), "warm_up: expected (height, width) of at least 1, got (120, 0)."));
}

TEST_CASE("trust=\"signed\" requires a key") {
  const Error error = failure_of([] { hybrid_rt::load(bundle(), {.trust = hybrid_rt::TrustPolicy::kSigned}); });
  CHECK(error.kind() == ErrorKind::kOption);
  CHECK(contains(error.what(), "trusted_keys: expected at least one public key, got none"));
}

TEST_CASE("a loaded bundle can switch to another variant, whose bytes are read from the file") {
  torch::jit::Module module = hybrid_rt::load(bundle());
  const DetectionTensors before = detect(module, image_of_rings(120, 200, 3));
  const TemporaryDirectory directory;
  module.save(directory.file("saved.pt"));  // the bytes of all variants, read again
  torch::jit::Module saved = torch::jit::load(directory.file("saved.pt"));
  CHECK(are_equal(detect(saved, image_of_rings(120, 200, 3)), before));
}

TEST_CASE("an engine runs without TorchScript") {
  REQUIRE(hybrid_rt::engine_names(bundle()) == std::vector<std::string>{"backbone"});
  const auto engine = hybrid_rt::open_engine(bundle(), "backbone");
  CHECK(engine->name() == "backbone");
  CHECK(engine->segments() == std::vector<std::string>{"backbone"});
  CHECK(engine->variants().front().chosen);
  const auto reference = hybrid_rt::open_engine(bundle(), "backbone", {.backend = "torchscript"});
  CHECK(reference->spec().backend == "torchscript");
  const at::Tensor image = image_of_rings(128, 256, 4).unsqueeze(0);
  const auto outputs = engine->run({image});
  const auto expected = reference->run({image});
  REQUIRE(outputs.size() == engine->spec().outputs.size());
  for (size_t i = 0; i < outputs.size(); ++i) CHECK(torch::allclose(outputs[i], expected[i], 1e-3, 1e-4));
  const Error refused = failure_of([&] { engine->run({image.to(at::kDouble)}); });
  CHECK(refused.kind() == ErrorKind::kInput);
  const Error unknown = failure_of([] { hybrid_rt::open_engine(bundle(), "neck"); });
  CHECK(contains(unknown.what(), "engine: expected one of backbone, got 'neck'."));
}
