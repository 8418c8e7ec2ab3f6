#include "cuda.h"

#include <c10/core/impl/VirtualGuardImpl.h>
#include <dlfcn.h>

#include <cstdlib>

#include "hybrid_rt/error.h"

namespace hybrid_rt::tensorrt {
namespace {

// Declarations of the driver's interface, which is stable: https://docs.nvidia.com/cuda/cuda-driver-api/.
using Result = int;
using Handle = void*;
constexpr Result kSuccess = 0;
constexpr int kNotCapturing = 0;        // CU_STREAM_CAPTURE_STATUS_NONE
constexpr int kThreadLocalCapture = 1;  // CU_STREAM_CAPTURE_MODE_THREAD_LOCAL: other threads are not affected
constexpr Result kImplicit = 906;       // CUDA_ERROR_STREAM_CAPTURE_IMPLICIT
constexpr unsigned kNonBlocking = 1;    // CU_STREAM_NON_BLOCKING: work in the default stream does not wait for it

/// The functions that are used; null if the driver does not have them.
struct Driver {
  Result (*get_error_string)(Result, const char**) = nullptr;
  Result (*get_version)(int*) = nullptr;
  Result (*is_capturing)(Handle, int*) = nullptr;
  Result (*create_stream)(Handle*, unsigned) = nullptr;
  Result (*destroy_stream)(Handle) = nullptr;
  Result (*begin_capture)(Handle, int) = nullptr;
  Result (*end_capture)(Handle, Handle*) = nullptr;
  Result (*instantiate)(Handle*, Handle, unsigned long long) = nullptr;
  Result (*launch)(Handle, Handle) = nullptr;
  Result (*destroy_graph)(Handle) = nullptr;
  Result (*destroy_executable)(Handle) = nullptr;

  static const Driver& instance() {
    static const Driver* const driver = new Driver();
    return *driver;
  }

  bool has_graphs() const {
    return create_stream != nullptr && destroy_stream != nullptr && begin_capture != nullptr &&
           end_capture != nullptr && instantiate != nullptr && launch != nullptr && destroy_graph != nullptr &&
           destroy_executable != nullptr;
  }

  std::string text_of(Result result) const {
    const char* text = nullptr;
    if (get_error_string != nullptr) get_error_string(result, &text);
    return text != nullptr ? text : "CUDA error " + std::to_string(result);
  }

 private:
  Driver() {
    const char* const named = std::getenv("HYBRID_RT_CUDA_DRIVER");
    void* const handle = dlopen(named != nullptr ? named : "libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
    if (handle == nullptr) return;
    const auto find = [handle](const char* name, auto& function) {
      function = reinterpret_cast<std::remove_reference_t<decltype(function)>>(dlsym(handle, name));
    };
    find("cuGetErrorString", get_error_string);
    find("cuDriverGetVersion", get_version);
    find("cuStreamIsCapturing", is_capturing);
    find("cuStreamCreate", create_stream);
    find("cuStreamDestroy_v2", destroy_stream);
    find("cuStreamBeginCapture_v2", begin_capture);
    find("cuStreamEndCapture", end_capture);
    find("cuGraphInstantiateWithFlags", instantiate);
    find("cuGraphLaunch", launch);
    find("cuGraphDestroy", destroy_graph);
    find("cuGraphExecDestroy", destroy_executable);
  }
};

}  // namespace

c10::Stream current_stream(c10::Device device) { return c10::impl::VirtualGuardImpl(device.type()).getStream(device); }

void* handle_of(const c10::Stream& stream) { return stream.native_handle(); }

std::string driver_cuda_version() {
  const Driver& driver = Driver::instance();
  int number = 0;  // 13010 is 13.1
  if (driver.get_version == nullptr || driver.get_version(&number) != kSuccess || number <= 0) return "";
  return std::to_string(number / 1000) + "." + std::to_string(number % 1000 / 10);
}

bool is_capturing(const c10::Stream& stream) {
  const Driver& driver = Driver::instance();
  if (driver.is_capturing == nullptr) return false;
  int status = kNotCapturing;
  const Result result = driver.is_capturing(handle_of(stream), &status);
  // While another stream is being recorded from, the default stream can't be queried: that counts as "yes" too. Other
  // failures are the device's, and whoever uses the stream will report them.
  return result == kImplicit || (result == kSuccess && status != kNotCapturing);
}

std::unique_ptr<CudaGraph> CudaGraph::record(const std::function<bool(void* stream)>& work, std::string& reason) {
  const Driver& driver = Driver::instance();
  if (!driver.has_graphs()) {
    reason = "the driver has no CUDA graphs";
    return nullptr;
  }
  Handle stream = nullptr;
  Handle graph = nullptr;
  Handle executable = nullptr;
  Result result = driver.create_stream(&stream, kNonBlocking);
  bool succeeded = true;
  if (result == kSuccess) {
    result = driver.begin_capture(stream, kThreadLocalCapture);
    if (result == kSuccess) {
      succeeded = work(stream);
      result = driver.end_capture(stream, &graph);
    }
    driver.destroy_stream(stream);
  }
  if (succeeded && result == kSuccess) result = driver.instantiate(&executable, graph, 0);
  if (graph != nullptr) driver.destroy_graph(graph);
  if (!succeeded) return nullptr;
  if (result == kSuccess) return std::unique_ptr<CudaGraph>(new CudaGraph(executable));
  reason = driver.text_of(result);
  return nullptr;
}

CudaGraph::~CudaGraph() { Driver::instance().destroy_executable(executable_); }

void CudaGraph::launch(const c10::Stream& stream) const {
  const Driver& driver = Driver::instance();
  const Result result = driver.launch(executable_, handle_of(stream));
  if (result == kSuccess) return;
  throw Error(ErrorKind::kBackend, "tensorrt", "run, CUDA graph", "to launch it", driver.text_of(result),
              "Set HYBRID_RT_TENSORRT_CUDA_GRAPHS=off to run without graphs.");
}

}  // namespace hybrid_rt::tensorrt
