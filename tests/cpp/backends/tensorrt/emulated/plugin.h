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

// The plug-in as it is shipped, opened like the core opens it, on the emulated GPU with the stand-in for TensorRT, or
// on a GPU with TensorRT's own library. In the latter case HYBRID_RT_TEST_GPU_ENGINES names the directory that
// tools/gpu/test_engines.py wrote, and the cases that need a fault or a counter of the emulated GPU are skipped.

bool on_a_gpu();
inline doctest::skip emulated_only() { return doctest::skip(on_a_gpu()); }

hybrid_rt::Backend& plugin();
/// Returns its report for `hybrid-rt doctor`.
nlohmann::json libraries_told();

/// The vendor's library that the stand-in replaces in this process, or that built the engines for a GPU.
struct StandIn {
  std::string library;  ///< "tensorrt", "tensorrt_rtx"
  std::string version;  ///< "10.14.1"

  static const StandIn& here();
};

struct Sizes {
  std::vector<int64_t> min;
  std::vector<int64_t> max;
};

// Returns the profiles of the engines for a GPU.
std::vector<Sizes> one_profile();
std::vector<Sizes> two_profiles();

/// An engine that a test creates: the stand-in's plan, the recorded facts, and its spec. Tests modify them. On a GPU,
/// the engine that was built for the same profiles replaces the plan.
struct Artifact {
  nlohmann::json plan;
  nlohmann::json bindings;
  hybrid_rt::ArtifactSpec spec;

  /// Computes y = upsample(conv(x) * 0.5 + 1) and z = the mean of each plane of y. x is [n, 3, even, even], with one
  /// profile per entry of `profiles`.
  explicit Artifact(const std::vector<Sizes>& profiles = one_profile());

  /// Loads the artifact in its current state. Throws like Backend::load.
  std::shared_ptr<hybrid_rt::Engine> load(c10::Device device = emulated::torch_device()) const;

 private:
  std::string built_;  ///< the engine for a GPU
};

/// Computes the outputs of Artifact() with torch on the CPU.
std::vector<at::Tensor> expected_of(const at::Tensor& x);
/// Copies both to the CPU in the current stream, and compares them.
bool are_close(const std::vector<at::Tensor>& got, const std::vector<at::Tensor>& expected);
/// Returns a random tensor on the CPU.
at::Tensor image(std::vector<int64_t> sizes);
at::Tensor on_device(const at::Tensor& tensor, int device = 0);

/// Counts the copies of inputs that a profiler would see in this thread, during its lifetime.
class CopiedInputs : Lasting {
 public:
  CopiedInputs();
  ~CopiedInputs();
  int count() const;

 private:
  uint64_t handle_;
};

/// Checks during its lifetime that no rule is broken, and at its end that nothing is left over.
class Watch : Lasting {
 public:
  Watch();
  ~Watch();

  /// Returns and clears the breaches so far.
  std::vector<std::string> take();

 private:
  size_t bytes_;
};
