#include "engine.h"

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <c10/util/StringUtil.h>
#include <sched.h>

#include <cstring>
#include <utility>

#include "hybrid_rt/error.h"
#include "hybrid_rt/plugin/dtype_table.h"

namespace hybrid_rt::tvm {
namespace {

/// Generated code loads whole vectors from the start of a tensor.
constexpr int kAlignment = 64;
/// Frees memory when the call ends. TVM's other allocator keeps a block for every size that it has seen, forever.
constexpr int64_t kNaiveAllocator = 1;
/// Lets the threads of a pool run on any of the given cores.
constexpr int64_t kShareCores = -3;

DLDataType data_type(c10::ScalarType dtype) {
  static const DtypeTable<DLDataType> types("tvm", "TVM",
                                            {{at::kFloat, {kDLFloat, 32, 1}},
                                             {at::kDouble, {kDLFloat, 64, 1}},
                                             {at::kHalf, {kDLFloat, 16, 1}},
                                             {at::kBFloat16, {kDLBfloat, 16, 1}},
                                             {at::kLong, {kDLInt, 64, 1}},
                                             {at::kInt, {kDLInt, 32, 1}},
                                             {at::kChar, {kDLInt, 8, 1}},
                                             {at::kByte, {kDLUInt, 8, 1}},
                                             {at::kBool, {kDLBool, 8, 1}}});
  return types.at(dtype);
}

bool equal(DLDataType a, DLDataType b) { return a.code == b.code && a.bits == b.bits && a.lanes == b.lanes; }

/// Wraps a torch tensor's memory as TVM's tensor, which keeps it alive.
Value wrap(at::Tensor tensor) {
  struct Held {
    DLManagedTensor managed;
    at::Tensor tensor;
    std::vector<int64_t> shape;
    std::vector<int64_t> strides;
  };
  if (reinterpret_cast<uintptr_t>(tensor.const_data_ptr()) % kAlignment != 0) tensor = tensor.clone();
  const DLDataType type = data_type(tensor.scalar_type());
  auto held = std::make_unique<Held>();
  held->shape = tensor.sizes().vec();
  held->strides.resize(held->shape.size());
  int64_t stride = 1;
  for (size_t d = held->shape.size(); d-- > 0;) {  // torch may have any stride for a dimension of size 1
    held->strides[d] = stride;
    stride *= held->shape[d];
  }
  held->tensor = std::move(tensor);
  held->managed.dl_tensor = DLTensor{held->tensor.data_ptr(),
                                     {kDLCPU, 0},
                                     static_cast<int32_t>(held->shape.size()),
                                     type,
                                     held->shape.data(),
                                     held->strides.data(),
                                     0};
  held->managed.manager_ctx = held.get();
  held->managed.deleter = [](DLManagedTensor* self) { delete static_cast<Held*>(self->manager_ctx); };
  const Library& library = Library::instance();
  TVMFFIObjectHandle handle = nullptr;
  library.require(library.functions().TVMFFITensorFromDLPack(&held->managed, kAlignment, 1, &handle), "input");
  held.release();  // NOLINT(bugprone-unused-return-value): the tensor owns it now
  TVMFFIAny any{};
  any.type_index = kTVMFFITensor;
  any.v_obj = static_cast<TVMFFIObject*>(handle);
  return Value(any);
}

/// Returns a function of a module.
Value function_of(const Value& module, const char* name) {
  return Library::instance()
      .global("ffi.ModuleGetFunction")
      .call(name, {module.get(), argument(name), argument(false)});
}

/// Returns the cores that the calling thread may run on.
std::vector<std::string> cores() {
  std::vector<std::string> found;
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(0, sizeof(set), &set) == 0) {
    for (int i = 0; i < CPU_SETSIZE; ++i) {
      if (CPU_ISSET(i, &set)) found.push_back(std::to_string(i));
    }
  }
  if (found.empty()) found.emplace_back("0");
  return found;
}

/// Creates the calling thread's pool of threads, which may run on the given cores.
void make_thread_pool(int threads, const std::vector<std::string>& all) {
  const Library& library = Library::instance();
  const Value array = library.global("ffi.Array");
  const Value configure = library.global("runtime.config_threadpool");
  // The first call creates one thread per core that it names, the second lets them run on all cores.
  std::vector<TVMFFIAny> some;
  for (int i = 0; i < threads; ++i) some.push_back(argument(all[static_cast<size_t>(i) % all.size()].c_str()));
  std::vector<TVMFFIAny> every;
  for (const std::string& core : all) every.push_back(argument(core.c_str()));
  for (const auto& names : {some, every}) {
    const Value list = array.call("threads", names);
    configure.call("threads", {argument(kShareCores), argument(int64_t{threads}), list.get()});
  }
}

std::string shape_of(const DLTensor& tensor) {
  std::string text;
  for (int32_t d = 0; d < tensor.ndim; ++d) text += (d ? "x" : "") + std::to_string(tensor.shape[d]);
  return text.empty() ? "a scalar" : text;
}

bool holds(const TensorSpec& spec, const DLTensor& tensor) {
  if (static_cast<size_t>(tensor.ndim) != spec.min.size() || !equal(tensor.dtype, data_type(spec.dtype))) return false;
  int64_t stride = 1;
  for (size_t d = spec.min.size(); d-- > 0;) {
    const int64_t size = tensor.shape[d];
    if (size < spec.min[d] || (spec.max[d] != TensorSpec::kUnbounded && size > spec.max[d])) return false;
    if (tensor.strides != nullptr && size > 1 && tensor.strides[d] != stride) return false;
    stride *= size;
  }
  return tensor.device.device_type == kDLCPU;
}

}  // namespace

/// Borrows a virtual machine from the pool for one call, and returns it however the call ends.
class TvmEngine::Lease {
 public:
  explicit Lease(TvmEngine& engine) : engine_(engine) {
    {
      const std::lock_guard lock(engine_.mutex_);
      while (!machine_ && !engine_.idle_.empty()) {
        machine_ = std::move(engine_.idle_.back());
        engine_.idle_.pop_back();
        if (!machine_->thread.is_here()) machine_.reset();  // after a fork, its thread exists only in the parent
      }
    }
    if (!machine_) machine_ = engine_.make_machine();
  }
  Lease(const Lease&) = delete;
  Lease& operator=(const Lease&) = delete;
  ~Lease() {
    if (!machine_) return;
    const std::lock_guard lock(engine_.mutex_);
    engine_.idle_.push_back(std::move(machine_));
  }

  Machine* operator->() const { return machine_.get(); }

  /// Drops the machine after a failure, because the state of its call stack is unknown.
  void discard() { machine_.reset(); }

 private:
  TvmEngine& engine_;
  std::unique_ptr<Machine> machine_;
};

TvmEngine::TvmEngine(const ArtifactSpec& spec, const at::Tensor& library, Conditions conditions,
                     const EngineOptions& options)
    : conditions_(std::move(conditions)),
      outputs_(spec.outputs),
      threads_(options.threads > 0 ? options.threads : at::get_num_threads()),
      file_("tvm", library),
      // TVM's generic function derives the format from the path's extension, which this path lacks.
      library_(Library::instance()
                   .global("ffi.Module.load_from_file.so")
                   .call("artifact", {argument(file_.path().c_str()), argument("so")})) {
  idle_.push_back(make_machine());
  description_ = "tvm " + Library::instance().version() + ", f32, " + std::to_string(threads_) + " threads";
}

std::unique_ptr<TvmEngine::Machine> TvmEngine::make_machine() const {
  const std::vector<std::string> all = cores();
  const std::string kind = std::to_string(threads_) + " threads on cores " + c10::Join(" ", all);
  auto machine = std::make_unique<Machine>(kind, [&] { make_thread_pool(threads_, all); });
  machine->thread.run([&] {
    machine->module = function_of(library_, "vm_load_executable").call("artifact", {});
    function_of(machine->module, "vm_initialization")
        .call("artifact", {argument(int64_t{kDLCPU}), argument(int64_t{0}), argument(kNaiveAllocator)});
    machine->main = function_of(machine->module, "main");
  });
  return machine;
}

std::vector<at::Tensor> TvmEngine::run(at::ArrayRef<at::Tensor> inputs) {
  conditions_.check(inputs);
  std::vector<Value> wrapped;
  std::vector<TVMFFIAny> arguments;
  for (const at::Tensor& input : inputs) {
    wrapped.push_back(wrap(input));
    arguments.push_back(wrapped.back().get());
  }
  Lease machine(*this);
  std::vector<at::Tensor> outputs;
  try {
    machine->thread.run([&] {
      const Value result = machine->main.call("run", arguments);
      if (result.get().type_index != kTVMFFIArray) {
        throw Error(ErrorKind::kBackend, "tvm", "run", "an array of outputs",
                    "a value of type " + std::to_string(result.get().type_index), "Convert the detector again.");
      }
      // An object's header comes first, then the data of its kind.
      const auto* cell = reinterpret_cast<const TVMFFISeqCell*>(result.get().v_obj + 1);
      const auto* values = static_cast<const TVMFFIAny*>(cell->data);
      if (cell->size != static_cast<int64_t>(outputs_.size())) {
        throw Error(ErrorKind::kBackend, "tvm", "run", std::to_string(outputs_.size()) + " outputs",
                    std::to_string(cell->size), "Convert the detector again.");
      }
      for (size_t i = 0; i < outputs_.size(); ++i) outputs.push_back(own(values[i], outputs_[i]));
    });
  } catch (...) {
    machine.discard();
    throw;
  }
  return outputs;
}

at::Tensor TvmEngine::own(const TVMFFIAny& output, const TensorSpec& spec) const {
  const DLTensor* tensor = output.type_index == kTVMFFITensor ? TVMFFITensorGetDLTensorPtr(output.v_obj) : nullptr;
  if (tensor == nullptr || !holds(spec, *tensor)) {
    throw Error(ErrorKind::kBackend, "tvm", "output '" + spec.name + "'", to_string(spec),
                tensor ? shape_of(*tensor) : "no tensor", "Convert the detector again.");
  }
  at::Tensor owned = at::empty(at::IntArrayRef(tensor->shape, static_cast<size_t>(tensor->ndim)), spec.dtype);
  if (owned.nbytes() > 0) {
    std::memcpy(owned.data_ptr(), static_cast<const char*>(tensor->data) + tensor->byte_offset, owned.nbytes());
  }
  return owned;
}

}  // namespace hybrid_rt::tvm
