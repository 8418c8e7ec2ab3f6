#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

// The vendor's runtime as this backend sees it, free of the vendor's headers. vendor_runtime.cpp implements it, and is
// compiled once for each set of these headers that the build found: TensorRT's classes are called by their places in
// tables that change with its major version, so that one plug-in serves each of them only by knowing each.

namespace hybrid_rt::tensorrt {

using Shape = std::vector<int64_t>;

/// What can be executed once at a time: the shapes and addresses of one call. Not thread-safe.
class VendorContext {
 public:
  virtual ~VendorContext() = default;

  /// The functions that return bool give false where the vendor refuses; its message went to the log.
  virtual bool set_input_shape(const std::string& name, const Shape& shape) = 0;
  virtual bool set_input(const std::string& name, const void* data) = 0;
  virtual bool set_output(const std::string& name, void* data) = 0;
  /// With all inputs' shapes set. A size below zero: it depends on values.
  virtual Shape output_shape(const std::string& name) const = 0;
  /// Bytes of device memory that a run at these shapes needs beside inputs, outputs and weights.
  virtual size_t scratch_size() = 0;
  virtual void set_scratch(void* data, size_t size) = 0;
  /// Puts the work into a stream (a cudaStream_t) and returns.
  virtual bool enqueue(void* stream) = 0;
};

/// A deserialised engine on the device that was the current one then. Thread-safe.
class VendorEngine {
 public:
  virtual ~VendorEngine() = default;

  virtual int64_t profiles() const = 0;
  virtual std::vector<std::string> inputs() const = 0;
  virtual std::vector<std::string> outputs() const = 0;
  /// Tells whether its address is the device's; the others are of values that shapes depend on.
  virtual bool is_on_device(const std::string& name) const = 0;
  /// A dtype's name as torch has it: "float32"; of one that torch has not, the vendor's number.
  virtual std::string dtype(const std::string& name) const = 0;
  /// Null where the vendor refuses. `stream`: in which what it sets up on the device runs.
  virtual std::unique_ptr<VendorContext> make_context(int64_t profile, void* stream) = 0;
  /// What was compiled on this machine so far, to be given to a later process; empty if the vendor has no such thing.
  virtual std::string runtime_cache() const = 0;
};

/// Severities are the vendor's: 0 internal error, 1 error, 2 warning, 3 information, 4 verbose.
using VendorLog = std::function<void(int severity, const char* text)>;

/// What TensorRT-RTX can be told of how it runs an engine; TensorRT has no such thing.
struct RtxSwitches {
  /// When kernels for the very sizes of a call are compiled: beside the calls, within the first one, or never.
  enum class Kernels { kLazy, kEager, kNone };

  Kernels kernels = Kernels::kLazy;
  bool records_graphs = false;  ///< CUDA graphs of its own

  bool is_default() const { return kernels == Kernels::kLazy && !records_graphs; }
};

struct DeserializeOptions {
  const void* bytes = nullptr;
  size_t size = 0;
  /// The engine brings a runtime of its own for newer versions (version-compatible ones do), which is code.
  bool allows_host_code = false;
  std::string runtime_cache;
  RtxSwitches switches;
};

/// Headers that the plug-in was compiled with.
struct VendorHeaders {
  std::string library;  ///< "tensorrt" or "tensorrt_rtx"
  int major = 0;
  int minor = 0;
  bool has_switches = false;  ///< TensorRT-RTX's, which it has in its own headers alone
  /// `create`: the library's createInferRuntime_INTERNAL; `version`: what its getInferLibVersion gave. `log` outlives
  /// the engine. Null where the vendor refuses.
  std::unique_ptr<VendorEngine> (*deserialize)(void* create, int version, const VendorLog& log,
                                               const DeserializeOptions& options) = nullptr;
};

/// Every set that the build found.
std::vector<VendorHeaders>& vendor_headers();

}  // namespace hybrid_rt::tensorrt
