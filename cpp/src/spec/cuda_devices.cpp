#include "spec/cuda_devices.h"

#include <array>
#include <cstdlib>
#include <optional>

#include "common/platform/shared_library.h"

namespace hybrid_rt {
namespace {

// Declarations of the driver's interface, which is stable: https://docs.nvidia.com/cuda/cuda-driver-api/. They are
// declared here so that the library needs no CUDA toolkit to build and no driver to run.
using Result = int;
using Device = int;
constexpr Result kSuccess = 0;
constexpr int kCapabilityMajor = 75;  // CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR
constexpr int kCapabilityMinor = 76;

#ifdef _WIN32
constexpr char kDriver[] = "nvcuda.dll";
#else
constexpr char kDriver[] = "libcuda.so.1";
#endif
constexpr char kRemedy[] = "Install NVIDIA's driver on a machine with a GPU, or run on the cpu";

class Driver {
 public:
  /// `path` is passed to the dynamic linker.
  explicit Driver(const char* path) : handle_(platform::open_library(path, platform::Symbols::kForCaller)) {}

  bool is_open() const { return handle_ != nullptr; }

  template <typename... Arguments>
  std::optional<Result> call(const char* name, Arguments... arguments) const {
    const auto function = reinterpret_cast<Result (*)(Arguments...)>(platform::find_symbol(handle_, name));
    if (function == nullptr) return std::nullopt;
    return function(arguments...);
  }

  bool succeeds(const std::optional<Result>& result) const { return result && *result == kSuccess; }

  std::string text_of(const std::optional<Result>& result) const {
    if (!result) return "a function is missing in it";
    const char* text = nullptr;
    call("cuGetErrorString", *result, &text);
    return text != nullptr ? text : "error " + std::to_string(*result);
  }

 private:
  void* handle_;  // never closed, because other libraries of the process use the driver too
};

CudaDevices ask_driver() {
  const char* named = std::getenv("HYBRID_RT_CUDA_DRIVER");
  const char* const path = named != nullptr ? named : kDriver;
  const Driver driver(path);
  if (!driver.is_open()) {
    return {{}, std::string("NVIDIA's driver (") + path + ") can't be opened. " + kRemedy};
  }
  if (const auto started = driver.call("cuInit", 0U); !driver.succeeds(started)) {
    return {{}, "NVIDIA's driver does not start: " + driver.text_of(started) + ". " + kRemedy};
  }
  int count = 0;
  if (const auto counted = driver.call("cuDeviceGetCount", &count); !driver.succeeds(counted)) {
    return {{}, "NVIDIA's driver does not count its devices: " + driver.text_of(counted) + ". " + kRemedy};
  }
  CudaDevices found;
  for (int i = 0; i < count; ++i) {
    Device device = 0;
    std::array<char, 256> name{};
    int major = 0;
    int minor = 0;
    size_t memory = 0;
    const bool is_known = driver.succeeds(driver.call("cuDeviceGet", &device, i)) &&
                          driver.succeeds(driver.call("cuDeviceGetName", name.data(), 255, device)) &&
                          driver.succeeds(driver.call("cuDeviceGetAttribute", &major, kCapabilityMajor, device)) &&
                          driver.succeeds(driver.call("cuDeviceGetAttribute", &minor, kCapabilityMinor, device)) &&
                          driver.succeeds(driver.call("cuDeviceTotalMem_v2", &memory, device));
    // Indices must match torch's, so no device may be skipped.
    if (!is_known) return {{}, "NVIDIA's driver does not describe device " + std::to_string(i) + ". " + kRemedy};
    found.devices.push_back(
        {name.data(), std::to_string(major) + "." + std::to_string(minor), static_cast<int64_t>(memory)});
  }
  if (count == 0) found.reason = std::string("NVIDIA's driver finds no device. ") + kRemedy;
  return found;
}

}  // namespace

const CudaDevices& cuda_devices() {
  static const CudaDevices* const devices = new CudaDevices(ask_driver());
  return *devices;
}

}  // namespace hybrid_rt
