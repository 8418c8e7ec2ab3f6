#include "providers.h"

#include <algorithm>
#include <cctype>
#include <cstdlib>
#include <sstream>

#include "handle.h"

namespace hybrid_rt::onnxruntime {
namespace {

constexpr char kVariable[] = "HYBRID_RT_ONNXRUNTIME_PROVIDERS";

/// Compares names of providers. ONNX Runtime spells its own in several ways: "TensorrtExecutionProvider", "TensorRT".
bool is_same(const std::string& a, const std::string& b) {
  return std::equal(a.begin(), a.end(), b.begin(), b.end(),
                    [](unsigned char x, unsigned char y) { return std::tolower(x) == std::tolower(y); });
}

bool holds(const std::vector<std::string>& names, const std::string& name) {
  return std::any_of(names.begin(), names.end(), [&](const std::string& other) { return is_same(name, other); });
}

std::string joined(const std::vector<std::string>& names) {
  std::string text;
  for (const std::string& name : names) text += (text.empty() ? "" : ", ") + name;
  return text;
}

}  // namespace

std::vector<std::string> wanted_providers() {
  std::vector<std::string> wanted;
  const char* named = std::getenv(kVariable);
  std::istringstream list(named == nullptr ? "" : named);
  for (std::string name; std::getline(list, name, ',');) {
    std::erase(name, ' ');
    name = name.substr(0, name.find("ExecutionProvider"));
    // The CPU provider is always present, and always last.
    if (!name.empty() && !is_same(name, "CPU") && !holds(wanted, name)) wanted.push_back(name);
  }
  return wanted;
}

std::string refusal_of(const std::vector<std::string>& providers, c10::Device device) {
  const Library& library = Library::instance();
  for (const std::string& name : providers) {
    if (!holds(library.providers(), name)) {
      return std::string(kVariable) + " asks for '" + name + "', which ONNX Runtime " + library.version() +
             " here was not built with (it has " + joined(library.providers()) +
             "). Install a build that has it, for instance onnxruntime-gpu for CUDA and TensorRT, or change the "
             "variable";
    }
  }
  // The core reports every other reason why the device can't be used.
  if (!device.is_cuda() || holds(providers, "CUDA") || holds(providers, "TensorRT")) return "";
  return "runs on cpu, not on " + device.str() + "; with " + kVariable + "=CUDA it would, where ONNX Runtime has it";
}

void append(SessionOptions* options, const std::vector<std::string>& providers, c10::Device device) {
  const Library& library = Library::instance();
  const Functions& functions = library.functions();
  const std::string index = std::to_string(device.has_index() ? device.index() : 0);
  const char* keys[] = {"device_id"};
  const char* values[] = {index.c_str()};
  for (const std::string& name : providers) {
    const std::string subject = "execution provider " + name;
    if (is_same(name, "CUDA")) {
      CudaOptions* made = nullptr;
      library.require(functions.CreateCUDAProviderOptions(&made), subject);
      const Handle<CudaOptions> own(made);
      library.require(functions.UpdateCUDAProviderOptions(made, keys, values, 1), subject);
      library.require(functions.SessionOptionsAppendExecutionProvider_CUDA_V2(options, made), subject);
    } else if (is_same(name, "TensorRT")) {
      TensorRtOptions* made = nullptr;
      library.require(functions.CreateTensorRTProviderOptions(&made), subject);
      const Handle<TensorRtOptions> own(made);
      library.require(functions.UpdateTensorRTProviderOptions(made, keys, values, 1), subject);
      library.require(functions.SessionOptionsAppendExecutionProvider_TensorRT_V2(options, made), subject);
    } else {
      library.require(functions.SessionOptionsAppendExecutionProvider(options, name.c_str(), nullptr, nullptr, 0),
                      subject);
    }
  }
}

}  // namespace hybrid_rt::onnxruntime
