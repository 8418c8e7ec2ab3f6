#include "call.h"

#include <ATen/ops/empty.h>
#include <ATen/record_function.h>

#include "hybrid_rt/error.h"

namespace hybrid_rt::tensorrt {
namespace {

constexpr uintptr_t kAlignment = 256;
constexpr char kCopied[] = "hybrid_rt copied input";  // hybrid_rt/bundle/call_parts.py counts these

/// An empty tensor has no memory, but TensorRT does not accept null.
void* address_of(const at::Tensor& tensor, const at::Tensor& scratch) {
  return tensor.numel() != 0 ? tensor.mutable_data_ptr() : scratch.mutable_data_ptr();
}

void set_shapes(const Library& library, const Bindings& bindings, PooledContext& context,
                const std::vector<Shape>& shapes) {
  if (context.input_shapes == shapes) return;
  context.input_shapes.clear();  // invalid until all are set
  for (size_t i = 0; i < shapes.size(); ++i) {
    const std::string& name = bindings.inputs[i];
    if (!name.empty())
      library.require(context.context->set_input_shape(name, shapes[i]), "input '" + name + "', shape");
  }
  context.output_shapes.clear();
  for (const std::string& name : bindings.outputs) {
    Shape shape = context.context->output_shape(name);
    for (const int64_t size : shape) {
      if (size >= 0) continue;
      throw Error(ErrorKind::kBackend, "tensorrt", "output '" + name + "'",
                  "a shape that follows from the inputs' shapes", "one that depends on their values",
                  "Exclude the operation that computes it from the segment.");
    }
    context.output_shapes.push_back(std::move(shape));
  }
  context.scratch_size = context.context->scratch_size();
  if (context.scratch_size == 0) {  // it needs none, or it failed with an error
    const std::string said = Library::take_last_error();
    if (!said.empty()) {
      throw Error(ErrorKind::kBackend, "tensorrt", "run, scratch memory", "its size from " + library.name(), said, "");
    }
  }
  context.input_shapes = shapes;
}

}  // namespace

std::string text_of(const c10::Error& error) {
  std::string text = error.what_without_backtrace();
  while (!text.empty() && (text.back() == '.' || text.back() == '\n')) text.pop_back();
  return text;
}

bool is_aligned(const at::Tensor& tensor) {
  return reinterpret_cast<uintptr_t>(tensor.const_data_ptr()) % kAlignment == 0;
}

at::Tensor aligned_copy(const at::Tensor& input) {
  RECORD_FUNCTION(kCopied, std::vector<c10::IValue>());
  return input.clone();
}

void copy_aligned(const at::Tensor& input, const at::Tensor& into) {
  RECORD_FUNCTION(kCopied, std::vector<c10::IValue>());
  into.copy_(input, /*non_blocking=*/true);
}

CallMemory prepare_call(const Library& library, const Bindings& bindings, PooledContext& context,
                        at::ArrayRef<at::Tensor> inputs, const std::vector<c10::ScalarType>& output_dtypes) {
  Library::take_last_error();
  set_shapes(library, bindings, context, shapes_of(inputs));
  const c10::Device device = inputs.front().device();
  CallMemory memory;
  try {
    memory.scratch = at::empty({static_cast<int64_t>(std::max<size_t>(context.scratch_size, 1))},
                               at::TensorOptions(at::kByte).device(device));
    for (size_t i = 0; i < inputs.size(); ++i) {
      if (!bindings.inputs[i].empty() && !is_aligned(inputs[i])) memory.copies.push_back(aligned_copy(inputs[i]));
    }
    for (size_t i = 0; i < bindings.outputs.size(); ++i) {
      memory.outputs.push_back(at::empty(context.output_shapes[i], at::TensorOptions(output_dtypes[i]).device(device)));
    }
  } catch (const c10::OutOfMemoryError& error) {
    throw Error(ErrorKind::kBackend, "tensorrt", "run",
                "memory on " + device.str() + " for the outputs and " + std::to_string(context.scratch_size >> 20) +
                    " MiB of scratch",
                text_of(error),
                "Pass smaller images or fewer at once, or end other programs. The engine remains usable.");
  }
  context.context->set_scratch(memory.scratch.mutable_data_ptr(), context.scratch_size);
  auto copy = memory.copies.cbegin();
  for (size_t i = 0; i < inputs.size(); ++i) {
    const std::string& name = bindings.inputs[i];
    if (name.empty()) continue;
    const at::Tensor& input = is_aligned(inputs[i]) ? inputs[i] : *copy++;
    const void* const data = input.numel() != 0 ? input.const_data_ptr() : memory.scratch.const_data_ptr();
    library.require(context.context->set_input(name, data), "input '" + name + "'");
  }
  for (size_t i = 0; i < memory.outputs.size(); ++i) {
    const std::string& name = bindings.outputs[i];
    library.require(context.context->set_output(name, address_of(memory.outputs[i], memory.scratch)),
                    "output '" + name + "'");
  }
  return memory;
}

}  // namespace hybrid_rt::tensorrt
