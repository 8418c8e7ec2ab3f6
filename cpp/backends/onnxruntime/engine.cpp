#include "engine.h"

#include <c10/core/impl/VirtualGuardImpl.h>
#include <unistd.h>

#include <cstring>

#include "hybrid_rt/error.h"
#include "hybrid_rt/plugin/dtype_table.h"
#include "hybrid_rt/plugin/nan_values.h"
#include "hybrid_rt/plugin/output_memory.h"
#include "providers.h"

namespace hybrid_rt::onnxruntime {
namespace {

/// The model's name for the file of its weights.
constexpr char kWeights[] = "weights";

ElementType element_type(c10::ScalarType dtype) {
  static const DtypeTable<ElementType> types("onnxruntime", "ONNX Runtime",
                                             {{at::kFloat, ElementType::kFloat},
                                              {at::kDouble, ElementType::kDouble},
                                              {at::kHalf, ElementType::kFloat16},
                                              {at::kBFloat16, ElementType::kBfloat16},
                                              {at::kLong, ElementType::kInt64},
                                              {at::kInt, ElementType::kInt32},
                                              {at::kChar, ElementType::kInt8},
                                              {at::kByte, ElementType::kUint8},
                                              {at::kBool, ElementType::kBool}});
  return types.at(dtype);
}

Handle<SessionOptions> make_options(const EngineOptions& options, const std::vector<std::string>& providers) {
  const Library& library = Library::instance();
  const Functions& functions = library.functions();
  SessionOptions* made = nullptr;
  library.require(functions.CreateSessionOptions(&made), "session options");
  Handle<SessionOptions> own(made);
  library.require(functions.SetIntraOpNumThreads(made, options.threads), "threads");
  library.require(functions.SetInterOpNumThreads(made, 1), "threads");
  // Threads that spin while they wait take cores from torch, which runs the head in between.
  library.require(functions.AddSessionConfigEntry(made, "session.intra_op.allow_spinning", "0"), "threads");
  append(made, providers, options.device);
  return own;
}

Handle<Session> make_session(const at::Tensor& model, const at::Tensor& weights, SessionOptions* options) {
  const Library& library = Library::instance();
  const Functions& functions = library.functions();
  if (weights.numel() != 0) {
    const char* names[] = {kWeights};
    // The C interface's type is not const, but the weights are only read.
    char* files[] = {const_cast<char*>(static_cast<const char*>(weights.const_data_ptr()))};
    const size_t sizes[] = {weights.nbytes()};
    library.require(functions.AddExternalInitializersFromFilesInMemory(options, names, files, sizes, 1), "weights");
  }
  Session* session = nullptr;
  library.require(
      functions.CreateSessionFromArray(library.env(), model.const_data_ptr(), model.nbytes(), options, &session),
      "artifact");
  return Handle<Session>(session);
}

using CountFunction = Status* (*)(const Session*, size_t*);
using NameFunction = Status* (*)(const Session*, size_t, Allocator*, char**);

/// Returns the names of the inputs or outputs. Throws Error(kBackend) if their number differs from the spec's.
std::vector<std::string> names_of(const Session* session, CountFunction count_of, NameFunction name_of, size_t expected,
                                  const std::string& what) {
  const Library& library = Library::instance();
  size_t count = 0;
  library.require(count_of(session, &count), what);
  if (count != expected) {
    throw Error(ErrorKind::kBackend, "onnxruntime", "artifact", std::to_string(expected) + " " + what,
                std::to_string(count), "Convert the detector again.");
  }
  Allocator* allocator = nullptr;
  library.require(library.functions().GetAllocatorWithDefaultOptions(&allocator), what);
  std::vector<std::string> names;
  for (size_t i = 0; i < count; ++i) {
    char* name = nullptr;
    library.require(name_of(session, i, allocator, &name), what);
    names.emplace_back(name);
    library.require(library.functions().AllocatorFree(allocator, name), what);
  }
  return names;
}

std::vector<const char*> pointers(const std::vector<std::string>& names) {
  std::vector<const char*> found;
  for (const std::string& name : names) found.push_back(name.c_str());
  return found;
}

/// Returns the shape of a value. Throws Error(kBackend) if its elements have another dtype.
std::vector<int64_t> shape_of(const Value* value, c10::ScalarType dtype) {
  const Library& library = Library::instance();
  const Functions& functions = library.functions();
  TypeAndShape* made = nullptr;
  library.require(functions.GetTensorTypeAndShape(value, &made), "output");
  const Handle<TypeAndShape> own(made);
  ElementType type{};
  library.require(functions.GetTensorElementType(made, &type), "output");
  if (type != element_type(dtype)) {
    throw Error(ErrorKind::kBackend, "onnxruntime", "output", c10::toString(dtype),
                "ONNX's element type " + std::to_string(static_cast<int>(type)), "Convert the detector again.");
  }
  size_t rank = 0;
  library.require(functions.GetDimensionsCount(made, &rank), "output");
  std::vector<int64_t> shape(rank);
  library.require(functions.GetDimensions(made, shape.data(), rank), "output");
  return shape;
}

}  // namespace

OnnxRuntimeEngine::OnnxRuntimeEngine(const ArtifactSpec& spec, const at::Tensor& model, const at::Tensor& weights,
                                     const EngineOptions& options)
    : device_(options.device), loses_nan_(!asks_for_nan(model)), process_(getpid()) {
  const Library& library = Library::instance();
  const Functions& functions = library.functions();
  for (const TensorSpec& output : spec.outputs) output_dtypes_.push_back(output.dtype);
  const std::vector<std::string> providers = wanted_providers();
  const Handle<SessionOptions> session_options = make_options(options, providers);
  session_ = make_session(model, weights, session_options.get());
  input_names_ = names_of(session_.get(), functions.SessionGetInputCount, functions.SessionGetInputName,
                          spec.inputs.size(), "inputs");
  output_names_ = names_of(session_.get(), functions.SessionGetOutputCount, functions.SessionGetOutputName,
                           spec.outputs.size(), "outputs");
  MemoryInfo* memory = nullptr;
  library.require(functions.CreateMemoryInfo(device_.is_cuda() ? "Cuda" : "Cpu", kDeviceAllocator,
                                             device_.has_index() ? device_.index() : 0, kDefaultMemory, &memory),
                  "memory");
  memory_.reset(memory);
  description_ = "onnxruntime " + library.version() + ", " + spec.precision + ", ";
  for (const std::string& provider : providers) description_ += provider + "+";
  description_ += "CPU, " + std::to_string(options.threads) + " threads";
}

OnnxRuntimeEngine::~OnnxRuntimeEngine() {
  // A forked process lacks the threads of the session, and their end would wait for them forever.
  if (getpid() != process_) static_cast<void>(session_.release());
}

std::vector<at::Tensor> OnnxRuntimeEngine::run_into(const std::vector<Shape>& shapes, at::ArrayRef<at::Tensor> inputs) {
  const bool is_nan = loses_nan_ && any_holds_nan(inputs);
  std::vector<at::Tensor> outputs;
  std::vector<Handle<Value>> values;
  for (size_t i = 0; i < shapes.size(); ++i) {
    outputs.push_back(output_memory_.empty(i, shapes[i], at::TensorOptions(output_dtypes_[i]).device(device_)));
    values.push_back(wrap(outputs.back()));
  }
  run_session(inputs, values);
  if (is_nan) fill_with_nan(outputs);
  return outputs;
}

ShapeCachingEngine::CopiedOutputs OnnxRuntimeEngine::run_and_copy(at::ArrayRef<at::Tensor> inputs) {
  const Library& library = Library::instance();
  const Functions& functions = library.functions();
  const bool is_nan = loses_nan_ && any_holds_nan(inputs);
  std::vector<Handle<Value>> values(output_dtypes_.size());
  run_session(inputs, values);
  SharedMemory shared(inputs);
  CopiedOutputs copied;
  for (size_t i = 0; i < values.size(); ++i) {
    at::Tensor output = empty_output(shape_of(values[i].get(), output_dtypes_[i]), output_dtypes_[i]);
    void* data = nullptr;
    library.require(functions.GetTensorMutableData(values[i].get(), &data), "output " + std::to_string(i));
    if (output.nbytes() != 0) std::memcpy(output.data_ptr(), data, output.nbytes());
    // An output that is itself an input or another output would not be written elsewhere.
    if (shared.overlaps(data, output.nbytes())) copied.must_copy = true;
    copied.outputs.push_back(output.to(device_));
  }
  if (is_nan) fill_with_nan(copied.outputs);
  return copied;
}

void OnnxRuntimeEngine::run_session(at::ArrayRef<at::Tensor> inputs, std::vector<Handle<Value>>& outputs) const {
  const Library& library = Library::instance();
  if (device_.is_cpu()) {
  } else {
    // ONNX Runtime uses its own stream, and waits for it before it returns.
    const c10::impl::VirtualGuardImpl guard(device_.type());
    guard.getStream(device_).synchronize();
  }
  std::vector<Handle<Value>> wrapped;
  std::vector<const Value*> given;
  for (const at::Tensor& input : inputs) {
    wrapped.push_back(wrap(input));
    given.push_back(wrapped.back().get());
  }
  std::vector<Value*> results;
  for (const Handle<Value>& output : outputs) results.push_back(output.get());
  const std::vector<const char*> input_names = pointers(input_names_);
  const std::vector<const char*> output_names = pointers(output_names_);
  Status* status = library.functions().Run(session_.get(), nullptr, input_names.data(), given.data(), given.size(),
                                           output_names.data(), output_names.size(), results.data());
  for (size_t i = 0; i < outputs.size(); ++i) {
    if (!outputs[i]) outputs[i].reset(results[i]);
  }
  library.require(status, "run");
}

/// Wraps a torch tensor's memory as ONNX Runtime's tensor.
Handle<Value> OnnxRuntimeEngine::wrap(const at::Tensor& tensor) const {
  const Library& library = Library::instance();
  static char nothing = 0;  // an empty tensor has no memory, but ONNX Runtime does not accept null
  void* data = tensor.numel() == 0 ? &nothing : tensor.data_ptr();
  Value* value = nullptr;
  library.require(library.functions().CreateTensorWithDataAsOrtValue(
                      memory_.get(), data, tensor.nbytes(), tensor.sizes().data(), static_cast<size_t>(tensor.dim()),
                      element_type(tensor.scalar_type()), &value),
                  "tensor");
  return Handle<Value>(value);
}

}  // namespace hybrid_rt::onnxruntime
