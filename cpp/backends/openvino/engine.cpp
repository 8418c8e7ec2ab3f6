#include "engine.h"

#include <ATen/ops/empty.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <optional>
#include <string>
#include <string_view>

#include "hybrid_rt/error.h"
#include "hybrid_rt/plugin/dtype_table.h"
#include "hybrid_rt/plugin/malformed.h"
#include "hybrid_rt/plugin/nan_values.h"
#include "hybrid_rt/plugin/output_memory.h"
#include "thread_binding.h"

namespace hybrid_rt::openvino {
namespace {

ov_element_type_e element_type(c10::ScalarType dtype) {
  static const DtypeTable<ov_element_type_e> types("openvino", "OpenVINO",
                                                   {{at::kFloat, F32},
                                                    {at::kDouble, F64},
                                                    {at::kHalf, F16},
                                                    {at::kBFloat16, BF16},
                                                    {at::kLong, I64},
                                                    {at::kInt, I32},
                                                    {at::kChar, I8},
                                                    {at::kByte, U8},
                                                    {at::kBool, BOOLEAN}});
  return types.at(dtype);
}

/// Wraps a torch tensor's memory as OpenVINO's tensor.
Handle<ov_tensor_t> wrap(const at::Tensor& tensor) {
  const Library& library = Library::instance();
  std::vector<int64_t> dims(tensor.sizes().begin(), tensor.sizes().end());
  const ov_shape_t shape{static_cast<int64_t>(dims.size()), dims.data()};
  static char nothing = 0;  // an empty tensor has no memory, but OpenVINO does not accept null
  void* data = tensor.numel() == 0 ? &nothing : tensor.data_ptr();
  ov_tensor_t* handle = nullptr;
  library.require(
      library.functions().ov_tensor_create_from_host_ptr(element_type(tensor.scalar_type()), shape, data, &handle),
      "tensor");
  return Handle<ov_tensor_t>(handle);
}

/// Refuses integers beyond 32 bits, which OpenVINO's CPU plug-in would wrap silently.
void require_32_bits(const at::Tensor& tensor, size_t index) {
  if (tensor.scalar_type() != c10::ScalarType::Long) return;
  const int64_t* const begin = tensor.const_data_ptr<int64_t>();
  const int64_t* const end = begin + tensor.numel();
  const auto large = std::find_if(begin, end, [](int64_t value) { return value != static_cast<int32_t>(value); });
  if (large == end) return;
  throw Error(ErrorKind::kInput, "openvino", "input " + std::to_string(index),
              "integers that fit into 32 bits, in which OpenVINO computes", std::to_string(*large),
              "Pass smaller numbers, or run a variant with 64-bit arithmetic: backend='torchscript'.");
}

/// Weights larger than this are stored once for all calls, see models_for.
constexpr size_t kMaxCopied = size_t{64} << 20;

/// Minimum number of sizes whose kernels a model keeps. OpenVINO's own limit is 5000 kernels per model: for a model
/// with three convolutions, that is more than a thousand sizes of a third of a megabyte each. A size that has been
/// dropped is prepared again when it returns.
[[maybe_unused]] constexpr size_t kKeptSizes = 20;

/// Returns the number of kernels that a model keeps: one per layer and size. Constants are counted as layers although
/// they have no kernels: this compensates for layers with several kernels, and lets small models keep more sizes. On
/// Arm a model keeps none, which is OpenVINO's own default there: with kept kernels, its results are wrong
/// (https://github.com/openvinotoolkit/openvino/pull/31052 has the default).
std::string kept_kernels([[maybe_unused]] const at::Tensor& xml) {
#if defined(__aarch64__)
  return "0";
#else
  const std::string_view text(static_cast<const char*>(xml.const_data_ptr()), static_cast<size_t>(xml.numel()));
  size_t layers = 0;
  for (size_t at = text.find("<layer "); at != std::string_view::npos; at = text.find("<layer ", at + 1)) ++layers;
  return std::to_string(std::clamp<size_t>(kKeptSizes * layers, 64, 5000));
#endif
}

/// Returns the number of compiled models that run concurrent calls. A model with one single-threaded stream runs a call
/// in the calling thread. Any other model passes each call to another thread and back, and a core may be idle
/// meanwhile: for a detector that takes 25 ms, two threads on two cores were 9 % slower. But streams share the weights
/// that OpenVINO arranges for the CPU, and separate models do not. For a large model the hand-over is negligible.
int models_for(const EngineOptions& options, const at::Tensor& weights) {
  return options.threads == 1 && weights.nbytes() <= kMaxCopied ? options.concurrency : 1;
}

/// Returns true if OpenVINO binds the threads of a call to CPUs. Fewer threads than CPUs would be bound to the same few
/// CPUs in each process.
bool binds_threads(const EngineOptions& options) {
  return options.pin_threads && options.concurrency == 1 && options.threads > 1 && occupy_every_cpu(options.threads);
}

/// Refuses a process that was forked after OpenVINO had compiled a model: it does not have OpenVINO's threads, and
/// would wait for them forever.
void check_process() {
  static std::atomic<pid_t> first{0};
  const pid_t here = getpid();
  pid_t owner = 0;
  if (first.compare_exchange_strong(owner, here) || owner == here) return;
  throw Error(ErrorKind::kBackend, "openvino", "process", "one that compiles with OpenVINO for the first time",
              "a fork of process " + std::to_string(owner) + ", which had compiled before",
              "Load in the children only, or start them with 'spawn'. What was loaded before the fork runs in them.");
}

std::vector<Handle<ov_compiled_model_t>> compile(const at::Tensor& xml, const at::Tensor& weights,
                                                 const std::string& precision, const EngineOptions& options) {
  check_process();
  const Library& library = Library::instance();
  const Functions& functions = library.functions();
  const Handle<ov_tensor_t> bytes = wrap(weights);
  ov_model_t* model = nullptr;
  library.require(functions.ov_core_read_model_from_memory_buffer(
                      library.core(), static_cast<const char*>(xml.const_data_ptr()), static_cast<size_t>(xml.numel()),
                      weights.numel() ? bytes.get() : nullptr, &model),
                  "artifact");
  const Handle<ov_model_t> owned(model);
  std::vector<Handle<ov_compiled_model_t>> models(models_for(options, weights));
  // A stream runs one call at a time. Calls that share a stream would wait for each other.
  const int streams = options.concurrency / static_cast<int>(models.size());
  const std::string streams_text = std::to_string(streams);
  const std::string threads = std::to_string(options.threads * streams);
  const std::string kernels = kept_kernels(xml);
  for (Handle<ov_compiled_model_t>& compiled : models) {
    ov_compiled_model_t* handle = nullptr;
    library.require(functions.ov_core_compile_model(
                        library.core(), model, "CPU", 12, &handle, "PERFORMANCE_HINT", "LATENCY", "NUM_STREAMS",
                        streams_text.c_str(), "INFERENCE_NUM_THREADS", threads.c_str(), "INFERENCE_PRECISION_HINT",
                        precision.c_str(), "ENABLE_CPU_PINNING", binds_threads(options) ? "YES" : "NO",
                        "CPU_RUNTIME_CACHE_CAPACITY", kernels.c_str()),
                    "artifact");
    compiled.reset(handle);
  }
  return models;
}

/// Checks an output's dtype, because OpenVINO writes the model's dtype and torch reads the spec's.
void require_dtype(const ov_tensor_t* tensor, const at::Tensor& output, size_t index) {
  const Library& library = Library::instance();
  ov_element_type_e type{};
  size_t bytes = 0;
  library.require(library.functions().ov_tensor_get_element_type(tensor, &type), "output");
  library.require(library.functions().ov_tensor_get_byte_size(tensor, &bytes), "output");
  if (type == element_type(output.scalar_type()) && bytes == output.nbytes()) return;
  throw malformed(
      "openvino", "artifact, output " + std::to_string(index),
      std::string(c10::toString(output.scalar_type())) + " in " + std::to_string(output.nbytes()) + " bytes",
      "another dtype in " + std::to_string(bytes) + " bytes");
}

/// Returns a tensor with sizes and dtype only. Reading its values throws.
at::Tensor without_values(at::IntArrayRef sizes, c10::ScalarType dtype) {
  return at::empty(sizes, at::TensorOptions(dtype).device(at::kMeta));
}

/// Returns the sizes that a model returns instead of an output.
std::vector<int64_t> sizes_in(const ov_tensor_t* tensor, size_t rank, size_t index) {
  const at::Tensor sizes = at::empty({static_cast<int64_t>(rank)}, at::kInt);
  require_dtype(tensor, sizes, index);
  const Library& library = Library::instance();
  void* data = nullptr;
  library.require(library.functions().ov_tensor_data(const_cast<ov_tensor_t*>(tensor), &data), "output");
  const auto* const begin = static_cast<const int32_t*>(data);
  return {begin, begin + rank};
}

}  // namespace

/// Borrows a place in the pool for one call, and returns it however the call ends.
class OpenVinoEngine::Lease {
 public:
  explicit Lease(OpenVinoEngine& engine) : engine_(engine) {
    const std::lock_guard lock(engine_.mutex_);
    if (engine_.idle_.empty()) {  // more concurrent calls than announced
      place_.number = engine_.places_++;
    } else {
      place_ = std::move(engine_.idle_.back());
      engine_.idle_.pop_back();
    }
  }
  Lease(const Lease&) = delete;
  Lease& operator=(const Lease&) = delete;
  ~Lease() {
    const std::lock_guard lock(engine_.mutex_);
    // Places that share a model go to the other end. If they were used first, calls would wait for a model while
    // another one is idle.
    const bool is_first = place_.number < engine_.compiled_.size();
    engine_.idle_.insert(is_first ? engine_.idle_.end() : engine_.idle_.begin(), std::move(place_));
  }

  /// Returns the place's request.
  ov_infer_request_t* request() {
    if (!place_.request) place_.request = make_request();
    return place_.request.get();
  }

  /// Creates another request that is not kept.
  Handle<ov_infer_request_t> make_request() const { return engine_.make_request(place_.number); }

  /// Drops the request after a failure, because its state is unknown.
  void discard() { place_.request.reset(); }

 private:
  OpenVinoEngine& engine_;
  Place place_;
};

OpenVinoEngine::OpenVinoEngine(const ArtifactSpec& spec, const at::Tensor& xml, at::Tensor weights,
                               std::vector<bool> sizes_only, const EngineOptions& options)
    : weights_(std::move(weights)),
      loses_nan_(!asks_for_nan(xml)),
      binds_threads_(binds_threads(options)),
      output_is_sizes_only_(std::move(sizes_only)) {
  const Library& library = Library::instance();
  for (const TensorSpec& output : spec.outputs) {
    output_dtypes_.push_back(output.dtype);
    output_is_scalar_.push_back(output.min.empty());
    output_ranks_.push_back(output.min.size());
  }
  const bool in_bf16 = spec.precision == "bf16" && (library.has_native_bf16() || options.emulate_precision);
  compiled_ = compile(xml, weights_, in_bf16 ? "bf16" : "f32", options);
  for (; places_ < compiled_.size(); ++places_) idle_.push_back({places_, make_request(places_)});
  // The unquantised part of an int8 model is computed in f32.
  const char* const computed = in_bf16 ? "bf16" : spec.precision == "int8" ? "int8" : "f32";
  description_ = "openvino " + library.version() + ", " + computed;
  if (spec.precision == "bf16" && !library.has_native_bf16()) {
    description_ += in_bf16 ? " (emulated)" : " (this CPU has no bf16 instructions)";
  }
  description_ += ", " + std::to_string(options.threads) + (binds_threads_ ? " pinned threads" : " threads");
  if (options.concurrency > 1) description_ += " for each of " + std::to_string(options.concurrency) + " calls";
}

Handle<ov_infer_request_t> OpenVinoEngine::make_request(size_t place) const {
  const Library& library = Library::instance();
  ov_infer_request_t* request = nullptr;
  ov_compiled_model_t* const model = compiled_[place % compiled_.size()].get();
  library.require(library.functions().ov_compiled_model_create_infer_request(model, &request), "request");
  return Handle<ov_infer_request_t>(request);
}

std::vector<at::Tensor> OpenVinoEngine::run_into(const std::vector<Shape>& shapes, at::ArrayRef<at::Tensor> inputs) {
  const Library& library = Library::instance();
  const bool is_nan = loses_nan_ && any_holds_nan(inputs);
  Lease lease(*this);
  std::vector<at::Tensor> outputs;
  try {
    ov_infer_request_t* const request = lease.request();
    set_inputs(request, inputs);
    for (size_t i = 0; i < shapes.size(); ++i) {
      if (output_is_sizes_only_[i]) {
        outputs.push_back(without_values(shapes[i], output_dtypes_[i]));
        continue;
      }
      outputs.push_back(output_memory_.empty(i, shapes[i], output_dtypes_[i]));
      const Handle<ov_tensor_t> tensor = wrap(outputs.back());
      library.require(library.functions().ov_infer_request_set_output_tensor_by_index(request, i, tensor.get()),
                      "output " + std::to_string(i));
    }
    infer(request);
  } catch (...) {
    lease.discard();
    throw;
  }
  if (is_nan) fill_with_nan(outputs);
  return outputs;
}

ShapeCachingEngine::CopiedOutputs OpenVinoEngine::run_and_copy(at::ArrayRef<at::Tensor> inputs) {
  const Library& library = Library::instance();
  const Functions& functions = library.functions();
  const bool is_nan = loses_nan_ && any_holds_nan(inputs);
  const Lease lease(*this);
  // Not from the pool, because this request owns its output tensors.
  const Handle<ov_infer_request_t> request = lease.make_request();
  set_inputs(request.get(), inputs);
  infer(request.get());
  SharedMemory shared(inputs);
  CopiedOutputs copied;
  for (size_t i = 0; i < output_dtypes_.size(); ++i) {
    ov_tensor_t* handle = nullptr;
    library.require(functions.ov_infer_request_get_output_tensor_by_index(request.get(), i, &handle), "output");
    const Handle<ov_tensor_t> tensor(handle);
    if (output_is_sizes_only_[i]) {
      copied.outputs.push_back(without_values(sizes_in(handle, output_ranks_[i], i), output_dtypes_[i]));
      continue;
    }
    if (output_is_scalar_[i]) {
      // The C interface has no shape without dimensions, so it can't be told where to write a scalar.
      copied.outputs.push_back(at::empty({}, output_dtypes_[i]));
      copied.must_copy = true;
    } else {
      ov_shape_t shape{};
      library.require(functions.ov_tensor_get_shape(handle, &shape), "output");
      const at::IntArrayRef sizes(shape.dims, static_cast<size_t>(shape.rank));
      copied.outputs.push_back(empty_output(sizes, output_dtypes_[i]));
      functions.ov_shape_free(&shape);
    }
    void* data = nullptr;
    library.require(functions.ov_tensor_data(handle, &data), "output");
    const at::Tensor& output = copied.outputs.back();
    require_dtype(handle, output, i);
    if (output.nbytes() > 0) std::memcpy(output.data_ptr(), data, output.nbytes());  // an empty tensor has no memory
    if (shared.overlaps(data, output.nbytes())) copied.must_copy = true;
  }
  if (is_nan) fill_with_nan(copied.outputs);
  return copied;
}

void OpenVinoEngine::infer(ov_infer_request_t* request) const {
  std::optional<KeptCpus> kept;
  if (binds_threads_) kept.emplace();
  const Library& library = Library::instance();
  library.require(library.functions().ov_infer_request_infer(request), "run");
}

void OpenVinoEngine::set_inputs(ov_infer_request_t* request, at::ArrayRef<at::Tensor> inputs) {
  const Library& library = Library::instance();
  for (size_t i = 0; i < inputs.size(); ++i) {
    require_32_bits(inputs[i], i);
    const Handle<ov_tensor_t> tensor = wrap(inputs[i]);
    library.require(library.functions().ov_infer_request_set_input_tensor_by_index(request, i, tensor.get()),
                    "input " + std::to_string(i));
  }
}

}  // namespace hybrid_rt::openvino
