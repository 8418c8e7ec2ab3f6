#pragma once

#include <ATen/core/Tensor.h>
#include <doctest/doctest.h>

#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "hybrid_rt/engine.h"
#include "hybrid_rt/plugin/backend.h"
#include "lasting.h"
#include "torch_device.h"

// The plug-in as it is shipped, opened as the core opens it, on the emulated GPU with the stand-in of TensorRT; or on a
// GPU with TensorRT's own library: then HYBRID_RT_TEST_GPU_ENGINES names the directory that tools/gpu/test_engines.py
// wrote, and the cases that need a fault or a counter of the emulated GPU are skipped.

bool on_a_gpu();
inline doctest::skip emulated_only() { return doctest::skip(on_a_gpu()); }

hybrid_rt::Backend& plugin();
/// What it tells `hybrid-rt doctor`.
nlohmann::json libraries_told();

/// Which of the vendor's libraries the stand-in is in this process, or which one built the engines for a GPU.
struct StandIn {
  std::string library;  ///< "tensorrt", "tensorrt_rtx"
  std::string version;  ///< "10.14.1"

  static const StandIn& here();
};

struct Sizes {
  std::vector<int64_t> min;
  std::vector<int64_t> max;
};

// The profiles of the engines for a GPU.
std::vector<Sizes> one_profile();
std::vector<Sizes> two_profiles();

/// An engine that a test makes: the stand-in's plan, what was recorded of it, and its spec. Tests alter them. On a GPU,
/// the engine that was built for the same profiles stands in the plan's place.
struct Artifact {
  nlohmann::json plan;
  nlohmann::json bindings;
  hybrid_rt::ArtifactSpec spec;

  /// y = upsample(conv(x) * 0.5 + 1), z = mean over each plane of that; x is [n, 3, even, even], one profile for each
  /// of `profiles`.
  explicit Artifact(const std::vector<Sizes>& profiles = one_profile());

  /// As it is now. Throws as Backend::load does.
  std::shared_ptr<hybrid_rt::Engine> load(c10::Device device = emulated::torch_device()) const;

 private:
  std::string built_;  ///< the engine for a GPU
};

/// Computes by torch on the CPU what Artifact() does.
std::vector<at::Tensor> expected_of(const at::Tensor& x);
/// Copies both to the CPU, in the current stream.
bool are_close(const std::vector<at::Tensor>& got, const std::vector<at::Tensor>& expected);
/// Random, on the CPU.
at::Tensor picture(std::vector<int64_t> sizes);
at::Tensor on_device(const at::Tensor& tensor, int device = 0);

/// Counts the copies of inputs that a profiler would see in this thread, in its lifetime.
class CopiedInputs : Lasting {
 public:
  CopiedInputs();
  ~CopiedInputs();
  int count() const;

 private:
  uint64_t handle_;
};

/// Holds for its lifetime, and at its end, that nobody broke a rule and nothing is left over.
class Watch : Lasting {
 public:
  Watch();
  ~Watch();

  /// Returns what was noticed so far, and forgets it.
  std::vector<std::string> take();

 private:
  size_t bytes_;
};
