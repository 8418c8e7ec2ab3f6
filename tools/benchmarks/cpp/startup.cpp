#include <torch/script.h>
#include <torch/serialize.h>

#include <chrono>
#include <ctime>
#include <fstream>
#include <iostream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <string>
#include <vector>

#include <ATen/Parallel.h>

#include "hybrid_rt/hybrid_rt.h"

// bench_startup BUNDLE INPUTS SMALL SMALL_INPUTS HEIGHT WIDTH THREADS REPEAT
//
// Measures the memory and the time that loading a bundle takes, and its first calls. SMALL is a bundle for the same
// engine that loads the vendor's library before. INPUTS are the arguments of a call, a tuple of tensors and lists of
// tensors that torch.save wrote. HEIGHT and WIDTH are the size that load() warms up; 0 0: none. Prints JSON.

namespace {

using Inputs = std::vector<c10::IValue>;

/// Returns a line of /proc/self/status in MiB: VmRSS, or VmHWM for the peak.
double memory(const std::string& name) {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);) {
    if (line.rfind(name + ":", 0) == 0) return std::stod(line.substr(name.size() + 1)) / 1024;
  }
  throw std::runtime_error("expected " + name + " in /proc/self/status, got none");
}

double processor_seconds() {
  timespec time{};
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &time);
  return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
}

/// Reads what torch.save wrote. The unpickler returns lists of any value, which modules do not accept as lists of
/// tensors.
Inputs read_inputs(const char* path) {
  std::ifstream file(path, std::ios::binary);
  const std::vector<char> bytes{std::istreambuf_iterator<char>(file), {}};
  const c10::IValue arguments = torch::pickle_load(bytes);
  Inputs inputs;
  for (const c10::IValue& value : arguments.toTupleRef().elements()) {
    if (!value.isList()) {
      inputs.push_back(value);
      continue;
    }
    c10::List<at::Tensor> tensors;
    for (const c10::IValue& tensor : value.toListRef()) tensors.push_back(tensor.toTensor());
    inputs.emplace_back(tensors);
  }
  return inputs;
}

/// Calls the module and returns the call's wall time and the process's CPU time, in ms.
nlohmann::json timed_call(torch::jit::Module& module, const Inputs& inputs) {
  const double processor = processor_seconds();
  const auto start = std::chrono::steady_clock::now();
  module.forward(inputs);
  const std::chrono::duration<double, std::milli> wall = std::chrono::steady_clock::now() - start;
  return {wall.count(), (processor_seconds() - processor) * 1e3};
}

nlohmann::json measure(char** arguments) {
  const int threads = std::stoi(arguments[7]);
  const int repeat = std::stoi(arguments[8]);
  at::set_num_threads(threads);
  const c10::InferenceMode inference;
  nlohmann::json found;
  at::ones({8, 8}).mm(at::ones({8, 8}));
  found["libtorch"] = memory("VmRSS");
  auto small = hybrid_rt::load(arguments[3], {.threads = threads});
  small.forward(read_inputs(arguments[4]));
  found["library"] = memory("VmRSS");

  const Inputs inputs = read_inputs(arguments[2]);
  hybrid_rt::LoadOptions options{.threads = threads};
  if (const int height = std::stoi(arguments[5]); height > 0) options.warm_up = {{height, std::stoi(arguments[6])}};
  found["before"] = memory("VmRSS");
  std::ofstream("/proc/self/clear_refs") << "5";  // resets VmHWM
  const auto start = std::chrono::steady_clock::now();
  auto module = hybrid_rt::load(arguments[1], options);
  found["load_ms"] = std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count();
  found["loaded"] = memory("VmRSS");
  found["peak"] = memory("VmHWM");
  for (int i = 0; i < repeat + 2; ++i) found["calls"].push_back(timed_call(module, inputs));
  found["run"] = memory("VmRSS");
  return found;
}

}  // namespace

int main(int count, char** arguments) try {
  if (count != 9) {
    std::cerr << "usage: bench_startup BUNDLE INPUTS SMALL SMALL_INPUTS HEIGHT WIDTH THREADS REPEAT\n";
    return 2;
  }
  std::cout << measure(arguments).dump() << "\n";
  return 0;
} catch (const std::exception& error) {
  std::cerr << "bench_startup: error: " << error.what() << "\n";
  return 1;
}
