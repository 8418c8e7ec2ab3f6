#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

// This backend's interface to the vendor's runtime, free of the vendor's headers. vendor_runtime.cpp implements it, and
// is compiled once per set of these headers that the build finds: TensorRT's methods are called by their positions in
// tables that change with its major version, so one plug-in that supports several versions must know each of them.

namespace hybrid_rt::tensorrt {

using Shape = std::vector<int64_t>;

/// An execution context with the shapes and addresses of one call. Not thread-safe.
class VendorContext {
 public:
  virtual ~VendorContext() = default;

  /// Functions with a bool result return false if the vendor refuses; its message is in the log.
  virtual bool set_input_shape(const std::string& name, const Shape& shape) = 0;
  virtual bool set_input(const std::string& name, const void* data) = 0;
  virtual bool set_output(const std::string& name, void* data) = 0;
  /// Call it once the shapes of all inputs are set. A size below zero depends on values.
  virtual Shape output_shape(const std::string& name) const = 0;
  /// Returns the bytes of device memory that a run at these shapes needs in addition to inputs, outputs and weights.
  virtual size_t scratch_size() = 0;
  virtual void set_scratch(void* data, size_t size) = 0;
  /// Launches the work in a stream (a cudaStream_t) and returns.
  virtual bool enqueue(void* stream) = 0;
};

/// A deserialised engine on the device that was current at that time. Thread-safe.
class VendorEngine {
 public:
  virtual ~VendorEngine() = default;

  virtual int64_t profiles() const = 0;
  virtual std::vector<std::string> inputs() const = 0;
  virtual std::vector<std::string> outputs() const = 0;
  /// Returns true for tensors on the device. The others hold values that shapes depend on.
  virtual bool is_on_device(const std::string& name) const = 0;
  /// Returns the dtype by torch's name, such as "float32", or the vendor's number if torch does not have it.
  virtual std::string dtype(const std::string& name) const = 0;
  /// Creates a context; null if the vendor refuses. `stream` runs its initialisation on the device.
  virtual std::unique_ptr<VendorContext> make_context(int64_t profile, void* stream) = 0;
  /// Returns the kernels that were compiled on this machine so far, for a later process; empty if the vendor has no
  /// such cache.
  virtual std::string runtime_cache() const = 0;
};

/// Receives the vendor's messages. Severities: 0 internal error, 1 error, 2 warning, 3 information, 4 verbose.
using VendorLog = std::function<void(int severity, const char* text)>;

/// Options of how TensorRT-RTX runs an engine. TensorRT has no such options.
struct RtxSwitches {
  /// Time at which kernels for the exact sizes of a call are compiled: in the background, within the first call, or
  /// never.
  enum class Kernels { kLazy, kEager, kNone };

  Kernels kernels = Kernels::kLazy;
  bool records_graphs = false;  ///< records its own CUDA graphs

  bool is_default() const { return kernels == Kernels::kLazy && !records_graphs; }
};

struct DeserializeOptions {
  const void* bytes = nullptr;
  size_t size = 0;
  /// The engine includes its own runtime for newer versions (version-compatible engines do), which is code.
  bool allows_host_code = false;
  std::string runtime_cache;
  RtxSwitches switches;
};

/// A set of headers that the plug-in was compiled with.
struct VendorHeaders {
  std::string library;  ///< "tensorrt" or "tensorrt_rtx"
  int major = 0;
  int minor = 0;
  bool has_switches = false;  ///< RtxSwitches, which exist only in TensorRT-RTX's own headers
  /// Deserialises an engine. `create` is the library's createInferRuntime_INTERNAL, `version` the result of its
  /// getInferLibVersion. `log` must outlive the engine. Returns null if the vendor refuses.
  std::unique_ptr<VendorEngine> (*deserialize)(void* create, int version, const VendorLog& log,
                                               const DeserializeOptions& options) = nullptr;
};

/// Returns every set that the build found.
std::vector<VendorHeaders>& vendor_headers();

}  // namespace hybrid_rt::tensorrt
