#pragma once

#include <ATen/core/Tensor.h>

#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "hybrid_rt/engine.h"
#include "hybrid_rt/plugin/backend.h"
#include "torch_device.h"

// The plug-in as it is shipped, opened as the core opens it, on the emulated GPU with the stand-in of TensorRT.

hybrid_rt::Backend& plugin();

/// Which of the vendor's libraries the stand-in is in this process.
struct StandIn {
  std::string library;  ///< "tensorrt", "tensorrt_rtx"
  std::string version;  ///< "10.14.1"

  static const StandIn& here();
};

struct Sizes {
  std::vector<int64_t> min;
  std::vector<int64_t> max;
};

/// An engine that a test makes: the stand-in's plan, what was recorded of it, and its spec. Tests alter them.
struct Artifact {
  nlohmann::json plan;
  nlohmann::json bindings;
  hybrid_rt::ArtifactSpec spec;

  /// y = upsample(conv(x) * 0.5 + 1), z = mean over each plane of that; x is [n, 3, even, even], one profile for each
  /// of `profiles`.
  explicit Artifact(const std::vector<Sizes>& profiles = {{{1, 3, 8, 8}, {4, 3, 64, 64}}});

  /// As it is now. Throws as Backend::load does.
  std::shared_ptr<hybrid_rt::Engine> load(c10::Device device = emulated::torch_device()) const;
};

/// Computes by torch on the CPU what Artifact() does.
std::vector<at::Tensor> expected_of(const at::Tensor& x);
/// Copies both to the CPU, in the current stream.
bool are_close(const std::vector<at::Tensor>& got, const std::vector<at::Tensor>& expected);
/// Random, on the CPU.
at::Tensor picture(std::vector<int64_t> sizes);
at::Tensor on_device(const at::Tensor& tensor, int device = 0);

/// Holds for its lifetime, and at its end, that nobody broke a rule and nothing is left over.
class Watch {
 public:
  Watch();
  Watch(const Watch&) = delete;
  Watch& operator=(const Watch&) = delete;
  ~Watch();

  /// Returns what was noticed so far, and forgets it.
  std::vector<std::string> take();

 private:
  size_t bytes_;
};
