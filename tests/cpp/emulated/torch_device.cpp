#include "torch_device.h"

#include <ATen/EmptyTensor.h>
#include <ATen/core/op_registration/adaption.h>
#include <ATen/native/CPUFallback.h>
#include <ATen/native/Resize.h>
#include <ATen/ops/_reshape_alias_native.h>
#include <ATen/ops/as_strided_native.h>
#include <ATen/ops/convolution.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/index.h>
#include <ATen/ops/view_native.h>
#include <c10/core/Allocator.h>
#include <c10/core/InferenceMode.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <dlfcn.h>
#include <torch/library.h>

#include <cstdlib>
#include <map>
#include <mutex>

namespace emulated {
namespace {

struct Streams {
  std::mutex mutex;
  std::map<std::pair<int, c10::StreamId>, Stream*> by_id;
  std::map<int, c10::StreamId> last_id;

  static Streams& instance() {
    static auto* const streams = new Streams();
    return *streams;
  }
};

thread_local std::map<int, c10::StreamId> current_streams;

c10::Stream torch_stream(int device, c10::StreamId id) {
  return c10::Stream(c10::Stream::UNSAFE, torch_device(device), id);
}

c10::Stream current_torch_stream(int device) { return torch_stream(device, current_streams[device]); }

int index_of(c10::Device device) { return device.has_index() ? device.index() : current_device(); }

/// Throws torch's error for a failed call of CUDA.
void require_device(int device) {
  make_context_current();
  TORCH_CHECK(!is_lost(device), "CUDA error: unspecified launch failure");
}

struct GuardImpl final : c10::impl::DeviceGuardImplInterface {
  c10::DeviceType type() const override { return kDevice; }
  c10::Device exchangeDevice(c10::Device device) const override {
    const c10::Device before = getDevice();
    setDevice(device);
    return before;
  }
  c10::Device getDevice() const override { return torch_device(current_device()); }
  void setDevice(c10::Device device) const override { set_current_device(index_of(device)); }
  void uncheckedSetDevice(c10::Device device) const noexcept override { set_current_device(index_of(device)); }
  c10::DeviceIndex deviceCount() const noexcept override { return static_cast<c10::DeviceIndex>(device_count()); }

  c10::Stream getStream(c10::Device device) const override { return current_torch_stream(index_of(device)); }
  c10::Stream getDefaultStream(c10::Device device) const override { return torch_stream(index_of(device), 0); }
  c10::Stream getStreamFromGlobalPool(c10::Device device, bool /*isHighPriority*/) const override {
    return new_torch_stream(index_of(device));
  }
  c10::Stream getNewStream(c10::Device device, int /*priority*/) const override {
    return new_torch_stream(index_of(device));
  }
  c10::Stream exchangeStream(c10::Stream stream) const override {
    const c10::Stream before = current_torch_stream(stream.device_index());
    current_streams[stream.device_index()] = stream.id();
    return before;
  }
  void* getStreamNativeHandle(const c10::Stream stream) const override { return handle_of(stream_of(stream)); }
  bool queryStream(const c10::Stream& stream) const override { return query(stream_of(stream)); }
  void synchronizeStream(const c10::Stream& stream) const override {
    require_device(stream.device_index());
    synchronize(stream_of(stream));
  }
  void synchronizeDevice(const c10::DeviceIndex device) const override {
    require_device(device);
    synchronize_all();
  }

  void record(void** event, const c10::Stream& stream, const c10::DeviceIndex /*device*/,
              const c10::EventFlag /*flag*/) const override {
    require_device(stream.device_index());
    if (*event == nullptr) *event = new Event();
    static_cast<Event*>(*event)->record(stream_of(stream));
  }
  void block(void* event, const c10::Stream& stream) const override {
    require_device(stream.device_index());
    if (event != nullptr) static_cast<Event*>(event)->block(stream_of(stream));
  }
  bool queryEvent(void* event) const override { return event == nullptr || static_cast<Event*>(event)->query(); }
  void synchronizeEvent(void* event) const override {
    require_device(current_device());
    if (event != nullptr) static_cast<Event*>(event)->synchronize();
  }
  void destroyEvent(void* event, const c10::DeviceIndex /*device*/) const noexcept override {
    delete static_cast<Event*>(event);
  }
};

C10_REGISTER_GUARD_IMPL(PrivateUse1, GuardImpl)

struct DeviceAllocator final : c10::Allocator {
  c10::DataPtr allocate(size_t size) override {
    const int device = current_device();
    require_device(device);
    void* data = nullptr;
    if (size != 0) {
      data = emulated::allocate(size, stream_of(current_torch_stream(device)));
      TORCH_CHECK_WITH(OutOfMemoryError, data != nullptr, "CUDA out of memory. Tried to allocate ", size, " bytes.");
    }
    return {data, data, &release_data, torch_device(device)};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &release_data; }
  void copy_data(void* /*to*/, const void* /*from*/, size_t /*size*/) const override {
    TORCH_CHECK(false, "not needed");
  }

 private:
  static void release_data(void* data) {
    if (data != nullptr) release(data);
  }
};

const int allocator_is_set = [] {
  c10::SetAllocator(kDevice, new DeviceAllocator());
  return 0;
}();

at::Tensor empty(c10::SymIntArrayRef sizes, std::optional<at::ScalarType> dtype, std::optional<at::Layout> /*layout*/,
                 std::optional<at::Device> device, std::optional<bool> /*pin*/,
                 std::optional<at::MemoryFormat> format) {
  const c10::DeviceGuard guard(torch_device(index_of(*device)));
  return at::detail::empty_generic_symint(sizes, c10::GetAllocator(kDevice),
                                          c10::DispatchKeySet(c10::DispatchKey::PrivateUse1),
                                          dtype.value_or(at::kFloat), format);
}

at::Tensor empty_strided(c10::SymIntArrayRef sizes, c10::SymIntArrayRef strides, std::optional<at::ScalarType> dtype,
                         std::optional<at::Layout> /*layout*/, std::optional<at::Device> device,
                         std::optional<bool> /*pin*/) {
  const c10::DeviceGuard guard(torch_device(index_of(*device)));
  return at::detail::empty_strided_symint_generic(sizes, strides, c10::GetAllocator(kDevice),
                                                  c10::DispatchKeySet(c10::DispatchKey::PrivateUse1),
                                                  dtype.value_or(at::kFloat));
}

/// Returns a host tensor of the same memory, for a stream's thread to work on.
at::Tensor on_host(const at::Tensor& tensor) {
  if (!tensor.device().is_privateuseone()) return tensor;
  return at::from_blob(tensor.mutable_data_ptr(), tensor.sizes(), tensor.strides(), tensor.options().device(at::kCPU));
}

/// Returns the bytes from its first to its last element.
size_t extent_of(const at::Tensor& tensor) {
  size_t last = 0;
  for (int64_t d = 0; d < tensor.dim(); ++d) last += static_cast<size_t>((tensor.size(d) - 1) * tensor.stride(d));
  return (last + 1) * tensor.element_size();
}

void add_use(Operation& operation, const at::Tensor& tensor, bool is_write) {
  if (!tensor.device().is_privateuseone()) return;
  operation.uses.push_back(
      use_of(tensor.const_data_ptr(), extent_of(tensor), is_write, tensor.device().index(), operation.name));
}

at::Tensor copy_from(const at::Tensor& from, const at::Tensor& to, bool non_blocking) {
  if (from.numel() == 0) return to;
  const bool is_from_here = from.device().is_privateuseone();
  const bool is_to_here = to.device().is_privateuseone();
  const int device = is_to_here ? to.device().index() : from.device().index();
  require_device(device);
  Stream* const stream = stream_of(current_torch_stream(device));
  Operation operation{"a copy", {}, {}, true};
  add_use(operation, from, false);
  add_use(operation, to, true);
  // A tensor on the device is not kept alive, only its memory is used: the host may release it before the copy runs.
  operation.work = [from = on_host(from), to = on_host(to)]() mutable {
    const c10::InferenceMode as_its_caller_may_be;
    to.copy_(from);
  };
  // Like torch's CUDA: for a copy between two devices, each one's stream waits for the other's.
  Stream* const other = is_from_here ? stream_of(current_torch_stream(from.device().index())) : stream;
  const auto wait = [](Stream* waiting, Stream* first) {
    if (waiting == first) return;
    Event event;
    event.record(first);
    event.block(waiting);
  };
  wait(stream, other);
  enqueue(stream, operation);
  operation = {};
  wait(other, stream);
  if (!non_blocking && !(is_from_here && is_to_here)) synchronize(stream);
  return to;
}

/// Copies into a result of any size that the caller provides.
at::Tensor copy_from_and_resize(const at::Tensor& from, const at::Tensor& to) {
  if (to.sizes() != from.sizes()) {
    TORCH_CHECK(to.numel() == 0, "only an empty result is made larger");
    to.unsafeGetTensorImpl()->set_sizes_contiguous(from.sizes());
    to.set_data(at::empty(from.sizes(), to.options()));
  }
  return copy_from(from, to, /*non_blocking=*/false);
}

at::Tensor& fill(at::Tensor& self, const at::Scalar& value) {
  if (self.numel() == 0) return self;
  require_device(self.device().index());
  Operation operation{"a fill", {}, {}, true};
  add_use(operation, self, true);
  operation.work = [to = on_host(self), value]() mutable {
    const c10::InferenceMode as_its_caller_may_be;
    to.fill_(value);
  };
  enqueue(stream_of(current_torch_stream(self.device().index())), operation);
  return self;
}

at::Tensor& zero(at::Tensor& self) { return fill(self, 0); }

/// torch calls a device's operator by this name, and the CPU's by another one.
at::Tensor convolve(const at::Tensor& input, const at::Tensor& weight, const std::optional<at::Tensor>& bias,
                    c10::SymIntArrayRef stride, c10::SymIntArrayRef padding, c10::SymIntArrayRef dilation,
                    bool is_transposed, c10::SymIntArrayRef output_padding, c10::SymInt groups) {
  const std::optional<at::Tensor> there = bias ? std::optional(bias->cpu()) : std::nullopt;
  return at::convolution_symint(input.cpu(), weight.cpu(), there, stride, padding, dilation, is_transposed,
                                output_padding, groups)
      .to(input.device());
}

/// cpu_fallback does not move lists of optional tensors.
at::Tensor index(const at::Tensor& self, const c10::List<std::optional<at::Tensor>>& indices) {
  c10::List<std::optional<at::Tensor>> there;
  for (size_t i = 0; i < indices.size(); ++i) {
    const std::optional<at::Tensor> each = indices.get(i);
    there.push_back(each && each->defined() ? std::optional(each->cpu()) : each);
  }
  return at::index(self.cpu(), there).to(self.device());
}

TORCH_LIBRARY_IMPL(aten, PrivateUse1, library) {
  library.impl("empty.memory_format", TORCH_FN(empty));
  library.impl("empty_strided", TORCH_FN(empty_strided));
  library.impl("_copy_from", TORCH_FN(copy_from));
  library.impl("_copy_from_and_resize", TORCH_FN(copy_from_and_resize));
  library.impl("convolution_overrideable", TORCH_FN(convolve));
  library.impl("index.Tensor", TORCH_FN(index));
  library.impl("fill_.Scalar", TORCH_FN(fill));
  library.impl("zero_", TORCH_FN(zero));
  library.impl("as_strided", TORCH_FN(at::native::as_strided_tensorimpl));
  library.impl("view", TORCH_FN(at::native::view));
  library.impl("_reshape_alias", TORCH_FN(at::native::_reshape_alias));
}

/// Runs all other operators, such as those of a detector's head, on copies on the CPU.
void on_cpu(const c10::OperatorHandle& op, torch::jit::Stack* stack) { at::native::cpu_fallback(op, stack); }

TORCH_LIBRARY_IMPL(_, PrivateUse1, library) { library.fallback(torch::CppFunction::makeFromBoxedFunction<&on_cpu>()); }

/// The name of the device for engines and for TorchScript code. torch compares it with the names of its own devices,
/// and writes it in lower case.
const int device_is_named = [] {
  if (!is_cuda()) c10::register_privateuse1_backend("Cuda");
  return 0;
}();

}  // namespace

bool is_cuda() {
  static const bool answer =
      std::getenv("HYBRID_RT_TEST_GPU_ENGINES") != nullptr && std::getenv("HYBRID_RT_TEST_GPU_REHEARSAL") == nullptr;
  return answer;
}

c10::Device torch_device(int index) {
  if (!is_cuda()) return {kDevice, static_cast<c10::DeviceIndex>(index)};
  static void* const library = dlopen("libtorch_cuda.so", RTLD_NOW | RTLD_GLOBAL);
  TORCH_CHECK(library != nullptr, dlerror());
  return {c10::kCUDA, static_cast<c10::DeviceIndex>(index)};
}

c10::Stream new_torch_stream(int device) {
  if (is_cuda()) return c10::impl::VirtualGuardImpl(c10::kCUDA).getNewStream(torch_device(device));
  Streams& streams = Streams::instance();
  const std::lock_guard lock(streams.mutex);
  const c10::StreamId id = ++streams.last_id[device];
  streams.by_id[{device, id}] = make_stream(device);
  return torch_stream(device, id);
}

Stream* stream_of(const c10::Stream& stream) {
  if (stream.id() == 0) return default_stream(stream.device_index());
  Streams& streams = Streams::instance();
  const std::lock_guard lock(streams.mutex);
  return streams.by_id.at({stream.device_index(), stream.id()});
}

}  // namespace emulated
