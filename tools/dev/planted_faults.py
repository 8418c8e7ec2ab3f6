"""Defines the faults that tools/dev/emulated_gpu.py plants into the TensorRT plug-in. Each breaks one rule."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Fault:
    """One modified place of the plug-in, and the expected message of a test."""

    name: str
    file: str  # file in cpp/backends/tensorrt
    old: str
    new: str
    noticed_as: str  # part of the failing tests' output


FAULTS = [
    Fault(
        "alignment", "call.cpp", "constexpr uintptr_t kAlignment = 256;", "constexpr uintptr_t kAlignment = 4;",
        "the address of x is not aligned",
    ),
    Fault(
        "address_not_set", "call.cpp", "for (size_t i = 0; i < memory.outputs.size(); ++i) {",
        "for (size_t i = 1; i < memory.outputs.size(); ++i) {", "a run is enqueued before the address of y is set",
    ),
    Fault(
        "small_scratch", "call.cpp", "set_scratch(memory.scratch.mutable_data_ptr(), context.scratch_size)",
        "set_scratch(memory.scratch.mutable_data_ptr(), context.scratch_size / 2)",
        "the scratch memory is smaller than requested",
    ),
    Fault(
        "scratch_of_the_last_shape", "call.cpp", "if (context.input_shapes == shapes) return;",
        "if (context.input_shapes == shapes || !context.output_shapes.empty()) return;", "CHECK( false )",
    ),
    Fault(
        "wrong_profile", "vendor_runtime.cpp", "setOptimizationProfileAsync(static_cast<int32_t>(profile),",
        "setOptimizationProfileAsync(static_cast<int32_t>(profile * 0),",
        "input x has a shape outside of the context's profile",
    ),
    Fault(
        "context_in_two_streams", "context_pool.cpp", "(*found)->done.block(stream);", "(void)stream;",
        "writes a context while a run in stream",
    ),
    Fault(
        "context_taken_while_it_runs", "context_pool.cpp", "is_of_profile(context) && context->done.query()",
        "is_of_profile(context)", "writes a context while",
    ),
    Fault(
        "context_ends_while_it_runs", "context_pool.cpp", "if (context) done.synchronize();", "",
        "a context is destroyed while",
    ),
    Fault(
        "engine_before_contexts", "engine.cpp", "    contexts_.clear();\n    engine_.reset();",
        "    engine_.reset();\n    contexts_.clear();", "an engine is destroyed before its contexts",
    ),
    Fault(
        "runtime_before_engine", "vendor_runtime.cpp",
        "  std::unique_ptr<nvinfer1::IRuntime> runtime_;\n  std::unique_ptr<nvinfer1::ICudaEngine> engine_;",
        "  std::unique_ptr<nvinfer1::ICudaEngine> engine_;\n  std::unique_ptr<nvinfer1::IRuntime> runtime_;",
        "a runtime is destroyed before its engines",
    ),
    Fault(
        "logger_before_runtime", "vendor_runtime.cpp",
        "  std::unique_ptr<Logger> logger_;\n  std::unique_ptr<nvinfer1::IRuntime> runtime_;\n"
        "  std::unique_ptr<nvinfer1::ICudaEngine> engine_;",
        "  std::unique_ptr<nvinfer1::IRuntime> runtime_;\n  std::unique_ptr<nvinfer1::ICudaEngine> engine_;\n"
        "  std::unique_ptr<Logger> logger_;",
        "a message is logged after the logger is gone",
    ),
    Fault(
        "copy_not_counted", "call.cpp", "  RECORD_FUNCTION(kCopied, std::vector<c10::IValue>());\n  return input",
        "  return input", "CHECK( copied.count() == 1 )",
    ),
    Fault(
        "copy_freed_too_early", "call.cpp",
        "const at::Tensor& input = is_aligned(inputs[i]) ? inputs[i] : *copy++;",
        "const at::Tensor input = is_aligned(inputs[i]) ? inputs[i] : (copy++)->clone();",
        "x lies outside of the device's memory",
    ),
    Fault(
        "other_device", "engine.cpp", "const c10::DeviceGuard guard(device_);\n  if (is_capturing",
        "if (is_capturing", "another device is the current one",
    ),
    Fault(
        "host_code_for_all", "vendor_runtime.cpp", "if (options.allows_host_code) runtime", "runtime",
        "an engine may contain code only if its record says so",
    ),
    Fault(
        "contexts_made_at_once", "vendor_runtime.cpp",
        "    const std::lock_guard lock(mutex_);\n    std::unique_ptr<nvinfer1::IExecutionContext> context(create",
        "    std::unique_ptr<nvinfer1::IExecutionContext> context(create",
        "an engine's createExecutionContext is called from two threads at once",
    ),
    Fault(
        "first_run_recorded", "graph_cache.cpp",
        'library_.require(entry.context->context->enqueue(handle_of(stream)), "run");', "",
        "the first run of a shape is captured",
    ),
    Fault(
        "recorded_while_it_runs", "graph_cache.cpp", "    entry.done.synchronize();\n  } catch", "  } catch",
        "a context is recorded while",
    ),
    Fault(
        "graph_not_waited_for", "graph_cache.cpp", "  entry->done.block(stream);\n", "",
        "may still use it",
    ),
    Fault(
        "graph_ends_while_it_runs", "graph_cache.cpp", "    done.synchronize();\n  } catch", "  } catch",
        "a graph is destroyed while",
    ),
    Fault(
        "failed_launch_not_marked", "graph_cache.cpp",
        "  const RecordAtEnd at_end(entry->done, stream);\n  for", "  for", "while",
    ),
    Fault(
        "shared_results", "graph_cache.cpp", "outputs.push_back(output.clone());", "outputs.push_back(output);",
        "callers own the results of recorded calls",
    ),
    Fault(
        "graphs_without_bound", "graph_cache.cpp", "while (bytes_ > options_.memory &&",
        "while (bytes_ > 100 * options_.memory &&", "the memory of destroyed graphs is freed",
    ),
    Fault(
        "dropped_graphs_still_counted", "graph_cache.cpp", "    bytes_ -= entries_.back()->bytes;\n", "",
        "the least recently used graph is destroyed after its last launch",
    ),
    Fault(
        "shape_not_set", "call.cpp", "    if (!name.empty())\n", "    if (name.empty())\n",
        "a shape is asked for before those of all inputs are set",
    ),
]  # fmt: skip
