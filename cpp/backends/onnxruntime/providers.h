#pragma once

#include <c10/core/Device.h>

#include <string>
#include <vector>

#include "interface.h"

namespace hybrid_rt::onnxruntime {

/// Returns the execution providers of HYBRID_RT_ONNXRUNTIME_PROVIDERS (separated by commas, best first, with or without
/// "ExecutionProvider"). ONNX Runtime gives each provider the operations that it supports, and the rest to the CPU.
/// Empty: the CPU only.
std::vector<std::string> wanted_providers();

/// Returns why the open library lacks a provider, or why the providers can't use a GPU `device`; empty if they can.
std::string refusal_of(const std::vector<std::string>& providers, c10::Device device);

/// Adds providers to a session's options. Throws Error(kBackend) with the library's message.
void append(SessionOptions* options, const std::vector<std::string>& providers, c10::Device device);

}  // namespace hybrid_rt::onnxruntime
