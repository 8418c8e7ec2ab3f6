#include "engine/devices.h"

#include <c10/core/impl/VirtualGuardImpl.h>

#include <string>

#include "common/platform/shared_library.h"
#include "hybrid_rt/error.h"
#include "spec/cuda_devices.h"

namespace hybrid_rt {

c10::Device with_index(c10::Device device) {
  if (!device.is_cuda() || device.has_index()) return device;
  // Without a device, torch throws instead of answering.
  const bool can_ask = !cuda_devices().devices.empty() && c10::impl::hasDeviceGuardImpl(device.type());
  if (!can_ask) return c10::Device(device.type(), 0);
  try {
    return c10::impl::VirtualGuardImpl(device.type()).getDevice();
  } catch (const c10::Error& error) {
    throw Error(ErrorKind::kOption, "bundle", "device " + device.str(), "a CUDA device that torch can use",
                error.what_without_backtrace(), "Update NVIDIA's driver, or install a build of torch that fits it.");
  }
}

void require_device(c10::Device device) {
  if (!device.is_cuda()) return;
  const CudaDevices& cuda = cuda_devices();
  const std::string subject = "device " + device.str();
  if (cuda.devices.empty()) {
    throw Error(ErrorKind::kOption, "bundle", subject, "a CUDA device", "none: " + cuda.reason, "");
  }
  const auto count = static_cast<int64_t>(cuda.devices.size());
  if (device.has_index() && device.index() >= count) {
    throw Error(ErrorKind::kOption, "bundle", subject, "an index below " + std::to_string(count), device.str(),
                "`hybrid-rt doctor` lists the devices.");
  }
  const std::string library =
      std::string(platform::kLibraryPrefix) + "torch_cuda" + std::string(platform::kLibrarySuffix);
  if (platform::open_library(library, platform::Symbols::kForProcess) != nullptr) return;
  throw Error(ErrorKind::kOption, "bundle", subject, "a libtorch that was built with CUDA", platform::library_failure(),
              "Install a CUDA build of torch, or load with device cpu.");
}

void wait_for(c10::Device device) {
  // Through torch's registry of devices, because libtorch_cuda is opened late and not linked.
  if (!device.is_cpu()) c10::impl::VirtualGuardImpl(device.type()).synchronizeDevice(device.index());
}

}  // namespace hybrid_rt
