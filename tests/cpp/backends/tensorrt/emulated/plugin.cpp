// Before doctest, whose CHECK is the one that is meant: torch's ends the process.
// clang-format off
#include <ATen/record_function.h>
// clang-format on

#include "plugin.h"

#include <ATen/ops/allclose.h>
#include <ATen/ops/conv2d.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/rand.h>
#include <ATen/ops/upsample_nearest2d.h>
#include <dlfcn.h>
#include <doctest/doctest.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <iterator>

#include "vendor.h"

namespace {

using hybrid_rt::TensorSpec;
using nlohmann::json;

constexpr int64_t kChannels = 4;

std::vector<float> weights() {
  std::vector<float> values;
  for (int i = 0; i < kChannels * 3 * 9; ++i) values.push_back(0.01F * static_cast<float>(i % 23 - 11));
  return values;
}

at::Tensor bytes_of(const std::string& text) {
  at::Tensor bytes = at::empty({static_cast<int64_t>(text.size())}, at::kByte);
  std::copy(text.begin(), text.end(), bytes.mutable_data_ptr<uint8_t>());
  return bytes;
}

void* plugin_library() {
  static void* const handle = [] {
    const char* const other = std::getenv("HYBRID_RT_TEST_TENSORRT_PLUGIN");
    void* const opened = dlopen(other != nullptr ? other : HYBRID_RT_TEST_TENSORRT_PLUGIN, RTLD_NOW | RTLD_LOCAL);
    REQUIRE_MESSAGE(opened != nullptr, dlerror());
    return opened;
  }();
  return handle;
}

std::string engines_for_a_gpu() {
  const char* const directory = std::getenv("HYBRID_RT_TEST_GPU_ENGINES");
  return directory != nullptr ? directory : "";
}

std::string content_of(const std::string& name) {
  const std::filesystem::path path = std::filesystem::path(engines_for_a_gpu()) / name;
  std::ifstream file(path, std::ios::binary);
  REQUIRE_MESSAGE(file.good(), path.string() << " is not there; tools/gpu/test_engines.py writes it");
  return {std::istreambuf_iterator<char>(file), {}};
}

/// Returns an engine's name as in tools/gpu/test_engines.py: "1x3x8x8-4x3x64x64".
std::string name_of(const std::vector<Sizes>& profiles) {
  std::string name;
  for (const Sizes& sizes : profiles) {
    name += name.empty() ? "" : "+";
    for (const auto* limits : {&sizes.min, &sizes.max}) {
      name += limits == &sizes.max ? "-" : "";
      for (size_t d = 0; d < limits->size(); ++d) name += (d ? "x" : "") + std::to_string((*limits)[d]);
    }
  }
  return name;
}

TensorSpec spec_of(std::string name, std::vector<int64_t> min, std::vector<int64_t> max) {
  TensorSpec spec;
  spec.name = std::move(name);
  spec.min = min;
  spec.opt = std::move(min);
  spec.max = std::move(max);
  return spec;
}

}  // namespace

nlohmann::json libraries_told() {
  const auto tell = reinterpret_cast<const char* (*)()>(dlsym(plugin_library(), "hybrid_rt_tensorrt_libraries"));
  REQUIRE((tell != nullptr));
  return json::parse(tell());
}

bool on_a_gpu() { return !engines_for_a_gpu().empty(); }

hybrid_rt::Backend& plugin() {
  static hybrid_rt::Backend* const backend = [] {
    const auto describe =
        reinterpret_cast<const hybrid_rt::PluginDescriptor* (*)()>(dlsym(plugin_library(), "hybrid_rt_plugin"));
    REQUIRE((describe != nullptr));
    REQUIRE(describe()->abi_version == hybrid_rt::kPluginAbiVersion);
    return describe()->create();
  }();
  return *backend;
}

const StandIn& StandIn::here() {
  static const StandIn* const here = [] {
    const hybrid_rt::Availability found = plugin().availability();
    REQUIRE_MESSAGE(found.available, found.reason);
    const std::string text = on_a_gpu() ? content_of("library.txt") : found.version;
    const size_t space = text.find(' ');
    return new StandIn{text.substr(0, space), text.substr(space + 1)};
  }();
  return *here;
}

std::vector<Sizes> one_profile() { return {{{1, 3, 8, 8}, {4, 3, 64, 64}}}; }

std::vector<Sizes> two_profiles() { return {{{1, 3, 8, 8}, {2, 3, 32, 32}}, {{1, 3, 32, 32}, {4, 3, 64, 64}}}; }

Artifact::Artifact(const std::vector<Sizes>& profiles) {
  std::vector<float> bias(kChannels, 0.25F);
  plan = {
      {"version", StandIn::here().version},
      {"inputs", {{{"name", "x"}, {"shape", {-1, 3, -1, -1}}}}},
      {"outputs", {{{"name", "y"}, {"shape", {-1, kChannels, -1, -1}}}, {{"name", "z"}, {"shape", {-1, kChannels}}}}},
      {"layers",
       {{{"kind", "conv"},
         {"inputs", {"x"}},
         {"output", "a"},
         {"channels", kChannels},
         {"stride", 2},
         {"weights", weights()},
         {"bias", bias}},
        {{"kind", "scale"}, {"inputs", {"a"}}, {"output", "b"}, {"weights", {0.5}}, {"bias", {1.0}}},
        {{"kind", "upsample"}, {"inputs", {"b"}}, {"output", "y"}},
        {{"kind", "mean"}, {"inputs", {"b"}}, {"output", "z"}}}},
      {"profiles", json::array()}};
  bindings = {{"inputs", {"x"}}, {"outputs", {"y", "z"}}, {"profiles", json::array()}};
  std::vector<int64_t> min = profiles.front().min;
  std::vector<int64_t> max = profiles.front().max;
  for (const Sizes& sizes : profiles) {
    const json range = {{"min", sizes.min}, {"max", sizes.max}};
    plan["profiles"].push_back({{"x", range}});
    bindings["profiles"].push_back(json::array({range}));
    for (size_t d = 0; d < min.size(); ++d) {
      min[d] = std::min(min[d], sizes.min[d]);
      max[d] = std::max(max[d], sizes.max[d]);
    }
  }
  spec.backend = "tensorrt";
  spec.precision = "fp32";
  spec.device = "cuda";
  spec.inputs = {spec_of("x", min, max)};
  spec.outputs = {spec_of("y", {min[0], kChannels, min[2], min[3]}, {max[0], kChannels, max[2], max[3]}),
                  spec_of("z", {min[0], kChannels}, {max[0], kChannels})};
  spec.requirements = {{StandIn::here().library, "==" + StandIn::here().version}};
  if (!on_a_gpu()) return;
  built_ = content_of(name_of(profiles) + ".engine");
  bindings = json::parse(content_of(name_of(profiles) + ".json"));
}

std::shared_ptr<hybrid_rt::Engine> Artifact::load(c10::Device device) const {
  const std::string engine = on_a_gpu() ? built_ : plan.dump();
  std::vector<at::Tensor> bytes = {bytes_of(engine), bytes_of(bindings.dump())};
  hybrid_rt::ArtifactSpec whole = spec;
  // Key of the cache of TensorRT-RTX's kernels.
  std::string digest = on_a_gpu() ? std::to_string(std::hash<std::string>()(engine)) : "";
  digest.resize(64, 'e');
  whole.blobs = {{"engine", bytes[0].numel(), digest, {}}, {"bindings", bytes[1].numel(), "", {}}};
  hybrid_rt::EngineOptions options;
  options.device = device;
  return plugin().load(whole, hybrid_rt::BlobMap(whole, bytes), options);
}

std::vector<at::Tensor> expected_of(const at::Tensor& x) {
  static const at::Tensor kernel = [] {
    std::vector<float> values = weights();
    at::Tensor made = at::empty({kChannels, 3, 3, 3});
    std::memcpy(made.mutable_data_ptr(), values.data(), values.size() * sizeof(float));
    return made;
  }();
  const at::Tensor b = at::conv2d(x, kernel, at::empty({kChannels}).fill_(0.25), 2, 1).mul(0.5).add(1.0);
  return {at::upsample_nearest2d(b, {x.size(2), x.size(3)}), b.mean({2, 3})};
}

bool are_close(const std::vector<at::Tensor>& got, const std::vector<at::Tensor>& expected) {
  if (got.size() != expected.size()) return false;
  for (size_t i = 0; i < got.size(); ++i) {
    const at::Tensor here = got[i].to(at::kCPU);
    const double allowed = on_a_gpu() ? 1e-4 : 1e-5;  // a GPU sums in another order
    if (here.sizes() != expected[i].sizes() || !at::allclose(here, expected[i], allowed, allowed)) return false;
  }
  return true;
}

at::Tensor image(std::vector<int64_t> sizes) { return at::rand(sizes); }

at::Tensor on_device(const at::Tensor& tensor, int device) { return tensor.to(emulated::torch_device(device)); }

namespace {

thread_local int copied_inputs = 0;

std::unique_ptr<at::ObserverContext> count_copy(const at::RecordFunction& function) {
  if (std::strcmp(function.name(), "hybrid_rt copied input") == 0) ++copied_inputs;
  return nullptr;
}

}  // namespace

CopiedInputs::CopiedInputs() : handle_(at::addThreadLocalCallback(at::RecordFunctionCallback(&count_copy))) {
  copied_inputs = 0;
}

CopiedInputs::~CopiedInputs() { at::removeCallback(handle_); }

int CopiedInputs::count() const { return copied_inputs; }

Watch::Watch() : bytes_(emulated::live_bytes()) {
  emulated::synchronize_all();
  emulated::take_breaches();
}

Watch::~Watch() {
  emulated::synchronize_all();
  std::string breaches;
  for (const std::string& breach : emulated::take_breaches()) breaches += breach + "\n";
  CHECK(breaches == "");
  CHECK(emulated::live_bytes() == bytes_);
  CHECK(emulated::live_graphs() == 0);
  const emulated::Vendor& vendor = emulated::Vendor::instance();
  CHECK(vendor.contexts == 0);
  CHECK(vendor.engines == 0);
  CHECK(vendor.runtimes == 0);
}

std::vector<std::string> Watch::take() {
  emulated::synchronize_all();
  return emulated::take_breaches();
}
