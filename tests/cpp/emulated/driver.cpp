#include <cstdlib>
#include <cstring>
#include <string>

#include "gpu.h"

// The functions of NVIDIA's driver that hybrid_rt calls, on the emulated device. Compiled a second time without graphs
// (EMULATED_OLD_DRIVER), like a driver that is too old for them.

namespace {

using Device = int;
using Handle = void*;
constexpr int kCapabilityMajor = 75;
constexpr int kCapabilityMinor = 76;

int result_of(int device) { return emulated::is_lost(device) ? emulated::kLaunchFailed : emulated::kSuccess; }

/// Returns the initial result of a function that needs a context.
[[maybe_unused]] int begin(const char* function) {
  if (const int result = emulated::driver_failure(function); result != emulated::kSuccess) return result;
  if (emulated::has_current_context()) return emulated::kSuccess;
  emulated::report_breach(std::string(function) + " is called in a thread that has no context");
  return emulated::kInvalidContext;
}

}  // namespace

#define EXPORT extern "C" __attribute__((visibility("default"))) int

EXPORT cuInit(unsigned) { return emulated::kSuccess; }

EXPORT cuDriverGetVersion(int* version) {
  const char* const asked = std::getenv("EMULATED_CUDA_VERSION");  // 12040 is 12.4
#ifdef EMULATED_OLD_DRIVER
  constexpr int kVersion = 9000;
#else
  constexpr int kVersion = 13010;
#endif
  *version = asked != nullptr ? std::atoi(asked) : kVersion;
  return emulated::kSuccess;
}

EXPORT cuDeviceGetCount(int* count) {
  *count = 2;  // whether or not a test uses the second one, because hybrid_rt asks only once
  return emulated::kSuccess;
}

EXPORT cuDeviceGet(Device* device, int index) {
  *device = index;
  return emulated::kSuccess;
}

EXPORT cuDeviceGetName(char* name, int size, Device) {
  std::strncpy(name, "Emulated GPU", static_cast<size_t>(size));
  return emulated::kSuccess;
}

EXPORT cuDeviceGetAttribute(int* value, int attribute, Device device) {
  const int capability = device == 0 ? 89 : 90;
  *value = attribute == kCapabilityMajor ? capability / 10 : attribute == kCapabilityMinor ? capability % 10 : 0;
  return emulated::kSuccess;
}

EXPORT cuDeviceTotalMem_v2(size_t* bytes, Device) {
  *bytes = size_t{1} << 30;
  return emulated::kSuccess;
}

EXPORT cuGetErrorString(int result, const char** text) {
  switch (result) {
    case emulated::kInvalidValue:
      *text = "invalid argument";
      return emulated::kSuccess;
    case emulated::kOutOfMemory:
      *text = "out of memory";
      return emulated::kSuccess;
    case emulated::kLaunchFailed:
      *text = "unspecified launch failure";
      return emulated::kSuccess;
    case emulated::kCaptureUnsupported:
      *text = "operation not permitted when stream is capturing";
      return emulated::kSuccess;
    case emulated::kCaptureInvalidated:
      *text = "operation failed due to a previous error during capture";
      return emulated::kSuccess;
    default:
      *text = nullptr;
      return emulated::kInvalidValue;
  }
}

EXPORT cuStreamIsCapturing(Handle stream, int* status) {
  if (!emulated::has_current_context()) return emulated::kInvalidContext;  // this function may be called anyway
  emulated::Stream* const asked = emulated::stream_of(stream);
  *status = emulated::is_capturing(asked) ? 1 : 0;
  return result_of(emulated::device_of(asked));
}

#ifndef EMULATED_OLD_DRIVER

EXPORT cuStreamCreate(Handle* stream, unsigned) {
  const int device = emulated::current_device();
  *stream = nullptr;
  if (const int result = begin("cuStreamCreate"); result != emulated::kSuccess) return result;
  if (const int result = result_of(device); result != emulated::kSuccess) return result;
  *stream = emulated::handle_of(emulated::make_stream(device));
  return emulated::kSuccess;
}

EXPORT cuStreamDestroy_v2(Handle stream) {
  emulated::destroy(emulated::stream_of(stream));
  return emulated::kSuccess;
}

EXPORT cuStreamBeginCapture_v2(Handle stream, int) {
  if (const int result = begin("cuStreamBeginCapture"); result != emulated::kSuccess) return result;
  return emulated::begin_capture(emulated::stream_of(stream));
}

EXPORT cuStreamEndCapture(Handle stream, Handle* graph) {
  emulated::Graph* captured = nullptr;
  const int result = emulated::end_capture(emulated::stream_of(stream), &captured);
  *graph = captured;
  return result;
}

EXPORT cuGraphInstantiateWithFlags(Handle* executable, Handle graph, unsigned long long) {
  *executable = nullptr;
  if (const int result = begin("cuGraphInstantiate"); result != emulated::kSuccess) return result;
  *executable = emulated::instantiate(static_cast<emulated::Graph*>(graph));
  return emulated::kSuccess;
}

EXPORT cuGraphLaunch(Handle executable, Handle stream) {
  if (const int result = begin("cuGraphLaunch"); result != emulated::kSuccess) return result;
  emulated::Stream* const into = emulated::stream_of(stream);
  if (const int result = result_of(emulated::device_of(into)); result != emulated::kSuccess) return result;
  return emulated::launch(static_cast<emulated::Graph*>(executable), into);
}

EXPORT cuGraphDestroy(Handle graph) {
  emulated::destroy(static_cast<emulated::Graph*>(graph));
  return emulated::kSuccess;
}

EXPORT cuGraphExecDestroy(Handle executable) {
  emulated::destroy(static_cast<emulated::Graph*>(executable));
  return emulated::kSuccess;
}

#endif
