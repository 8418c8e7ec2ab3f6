#pragma once

#include <c10/core/Device.h>

#include <string>
#include <vector>

#include "interface.h"

namespace hybrid_rt::onnxruntime {

/// The execution providers that HYBRID_RT_ONNXRUNTIME_PROVIDERS names, comma separated, best first, with or without
/// "ExecutionProvider"; ONNX Runtime gives each what it takes and the rest to the CPU's. Empty: the CPU's alone.
std::vector<std::string> wanted_providers();

/// Why the library that is open lacks one of them, or why they can't use `device` if it is a GPU; empty if they can.
std::string refusal_of(const std::vector<std::string>& providers, c10::Device device);

/// Adds them to a session's options. Throws Error(kBackend) with the library's message.
void append(SessionOptions* options, const std::vector<std::string>& providers, c10::Device device);

}  // namespace hybrid_rt::onnxruntime
