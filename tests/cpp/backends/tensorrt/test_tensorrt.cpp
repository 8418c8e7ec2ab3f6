// Tests the parts of the TensorRT backend that need neither the vendor's library nor a GPU.

#include <ATen/ops/empty.h>
#include <doctest/doctest.h>

#include <algorithm>
#include <filesystem>
#include <iterator>
#include <string>
#include <thread>
#include <vector>

#include "bindings.h"
#include "failure_of.h"
#include "graph_cache.h"
#include "hybrid_rt/error.h"
#include "runtime_cache.h"
#include "temporary.h"

namespace {

using hybrid_rt::ArtifactSpec;
using hybrid_rt::tensorrt::Bindings;
using hybrid_rt::tensorrt::GraphMode;
using namespace std::string_literals;

at::Tensor bytes_of(const std::string& text) {
  at::Tensor bytes = at::empty({static_cast<int64_t>(text.size())}, at::kByte);
  std::copy(text.begin(), text.end(), bytes.mutable_data_ptr<uint8_t>());  // an empty tensor has no memory
  return bytes;
}

ArtifactSpec spec_of(size_t inputs, size_t outputs) {
  ArtifactSpec spec;
  spec.inputs.resize(inputs);
  spec.outputs.resize(outputs);
  return spec;
}

constexpr char kTwoProfiles[] =
    R"({"inputs": ["x", ""], "outputs": ["y"], "profiles": [
      [{"min": [1, 3, 32, 32], "max": [4, 3, 64, 64]}, {"min": [2], "max": [2]}],
      [{"min": [1, 3, 96, 96], "max": [1, 3, 128, 128]}, {"min": [2], "max": [2]}]]})";

Bindings two_profiles() { return Bindings::from_json(bytes_of(kTwoProfiles), spec_of(2, 1)); }

}  // namespace

TEST_CASE("a call takes the first profile that contains its shapes") {
  const Bindings bindings = two_profiles();
  CHECK(bindings.profile_for({{1, 3, 32, 32}, {2}}) == 0);
  CHECK(bindings.profile_for({{4, 3, 64, 33}, {2}}) == 0);
  CHECK(bindings.profile_for({{1, 3, 96, 128}, {2}}) == 1);
  CHECK(bindings.inputs[1].empty());
}

TEST_CASE("a shape outside of every profile is refused with all of them") {
  const Bindings bindings = two_profiles();
  const std::string text = failure_of([&] { bindings.profile_for({{1, 3, 80, 80}, {2}}); }).what();
  CHECK(text ==
        "hybrid_rt[tensorrt]: inputs: expected shapes within one optimisation profile (profile 0: "
        "1..4x3x32..64x32..64 2; profile 1: 1x3x96..128x96..128 2), got 1x3x80x80 2. Resize the images, or convert "
        "again with profiles that cover this size.");
  CHECK(failure_of([&] { bindings.profile_for({{2, 3, 96, 96}, {2}}); }).kind() == hybrid_rt::ErrorKind::kInput);
  CHECK(failure_of([&] { bindings.profile_for({{1, 3, 32}, {2}}); }).kind() == hybrid_rt::ErrorKind::kInput);
}

TEST_CASE("bindings that differ from the spec are refused") {
  for (const char* text : {"", "[]", "{}", R"({"inputs": ["x"], "outputs": ["y"], "profiles": []})",
                           R"({"inputs": ["x"], "outputs": ["y"], "profiles": [[]]})",
                           R"({"inputs": ["x"], "outputs": ["y"], "profiles": [[{"min": [1], "max": [1, 2]}]]})",
                           R"({"inputs": ["x", "z"], "outputs": ["y"], "profiles": [[{"min": [1], "max": [1]}]]})"}) {
    CAPTURE(text);
    const auto failure = failure_of([&] { Bindings::from_json(bytes_of(text), spec_of(1, 1)); });
    CHECK(contains(failure.what(), "hybrid_rt[tensorrt]: artifact, bindings: expected "));
  }
}

TEST_CASE("an environment variable turns CUDA graphs on and off") {
  const auto mode_of = [](const char* text) {
    const TemporaryVariable variable("HYBRID_RT_TENSORRT_CUDA_GRAPHS", text);
    return hybrid_rt::tensorrt::graph_mode();
  };
  CHECK(mode_of(nullptr) == GraphMode::kOff);
  CHECK(mode_of("off") == GraphMode::kOff);
  CHECK(mode_of("copy") == GraphMode::kCopy);
  CHECK(mode_of("static") == GraphMode::kStatic);
  CHECK(std::string(failure_of([&] { mode_of("yes"); }).what()) ==
        "hybrid_rt[tensorrt]: HYBRID_RT_TENSORRT_CUDA_GRAPHS: expected off, copy or static, got 'yes'. Set one of "
        "these, or unset it.");
}

TEST_CASE("TensorRT-RTX's compiled kernels are kept intact between processes") {
  const TemporaryDirectory directory;
  const TemporaryVariable place("HYBRID_RT_CACHE", directory.path().c_str());
  const hybrid_rt::tensorrt::RuntimeCacheFile file("key");
  CHECK(file.read().empty());
  file.write("bytes\n\0"s);
  CHECK(file.read() == "bytes\n\0"s);
  file.write("");  // empty contents do not replace the old file
  CHECK(file.read() == "bytes\n\0"s);
  const auto in_directory = std::filesystem::directory_iterator(directory.path() / "tensorrt_rtx");
  CHECK(std::distance(begin(in_directory), end(in_directory)) == 1);
}

TEST_CASE("engines that are destroyed at the same time leave one complete cache") {
  const TemporaryDirectory directory;
  const TemporaryVariable place("HYBRID_RT_CACHE", directory.path().c_str());
  const hybrid_rt::tensorrt::RuntimeCacheFile file("key");
  std::vector<std::thread> running;
  for (char letter = 'a'; letter < 'i'; ++letter) {
    running.emplace_back([&, letter] {
      for (int i = 0; i < 20; ++i) file.write(std::string(300000, letter));
    });
  }
  for (std::thread& thread : running) thread.join();
  const std::string kept = file.read();
  CHECK((kept == std::string(300000, kept.empty() ? ' ' : kept.front())));
  const auto in_directory = std::filesystem::directory_iterator(directory.path() / "tensorrt_rtx");
  CHECK(std::distance(begin(in_directory), end(in_directory)) == 1);
}

TEST_CASE("nothing is kept if that is turned off or impossible") {
  const TemporaryDirectory directory;
  {
    const TemporaryVariable place("HYBRID_RT_CACHE", directory.path().c_str());
    const TemporaryVariable off("HYBRID_RT_CACHE_SIZE", "0");
    hybrid_rt::tensorrt::RuntimeCacheFile("key").write("bytes");
    hybrid_rt::tensorrt::RuntimeCacheFile("").write("bytes");
  }
  CHECK(std::filesystem::is_empty(directory.path()));
  const TemporaryVariable place("HYBRID_RT_CACHE", "/dev/null/directory");
  hybrid_rt::tensorrt::RuntimeCacheFile("key").write("bytes");
  CHECK(hybrid_rt::tensorrt::RuntimeCacheFile("key").read().empty());
}
