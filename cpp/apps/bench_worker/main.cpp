// hybrid-rt-bench-worker JOB.json: runs one detector in its own process, on request of the benchmark. This is the C++
// counterpart of hybrid_rt/bench/worker.py, with the same job and the same protocol.

#include <ATen/Parallel.h>
#include <c10/core/InferenceMode.h>
#include <dlfcn.h>
#include <hybrid_rt/detections.h>
#include <hybrid_rt/hybrid_rt.h>
#include <torch/script.h>
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <exception>
#include <fstream>
#include <iostream>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <string>
#include <vector>

namespace {

using nlohmann::json;
using Clock = std::chrono::steady_clock;

double milliseconds_since(Clock::time_point start) {
  return std::chrono::duration<double, std::milli>(Clock::now() - start).count();
}

/// Returns the original stdout. Whatever libraries print to stdout from now on goes to stderr.
std::FILE* take_stdout() {
  std::FILE* replies = fdopen(dup(STDOUT_FILENO), "w");
  if (replies == nullptr || dup2(STDERR_FILENO, STDOUT_FILENO) < 0) throw std::runtime_error("stdout can't be used");
  return replies;
}

void send(std::FILE* replies, const json& reply) {
  std::fputs((reply.dump(-1, ' ', false, json::error_handler_t::replace) + "\n").c_str(), replies);
  std::fflush(replies);
}

torch::jit::Module open(const json& job, c10::Device device) {
  for (const std::string library : job.at("libraries")) {
    if (dlopen(library.c_str(), RTLD_NOW | RTLD_GLOBAL) == nullptr) throw std::runtime_error(dlerror());
  }
  const std::string path = job.at("path");
  if (job.at("runtime") == "torchscript") {
    auto module = torch::jit::load(path, torch::kCPU);
    module.eval();
    if (!device.is_cpu()) hybrid_rt::move_to(module, device);
    return module;
  }
  return hybrid_rt::load(path, {.device = device, .threads = job.at("threads"), .pin_threads = true});
}

/// Returns the detections: the second element of (losses, detections) for torchvision's scripted detectors, otherwise
/// the result.
c10::List<c10::IValue> detections_of(const c10::IValue& result) {
  return (result.isTuple() ? result.toTupleRef().elements().at(1) : result).toList();
}

template <class Number>
std::vector<Number> numbers(const c10::IValue& value, at::ScalarType type) {
  const at::Tensor tensor = value.toTensor().to(at::kCPU, type).contiguous();
  const Number* const first = tensor.const_data_ptr<Number>();
  return {first, first + tensor.numel()};
}

json boxes_of(const c10::IValue& result) {
  const auto found = detections_of(result).get(0).toGenericDict();
  return {{"boxes", numbers<double>(found.at("boxes"), at::kDouble)},
          {"labels", numbers<int64_t>(found.at("labels"), at::kLong)},
          {"scores", numbers<double>(found.at("scores"), at::kDouble)}};
}

/// Returns the peak resident memory in bytes. getrusage would start at the parent's peak.
int64_t peak_memory() {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);) {
    if (line.rfind("VmHWM:", 0) == 0) return std::stoll(line.substr(6)) * 1024;
  }
  return 0;
}

void work(const json& job, std::FILE* replies) {
  at::set_num_threads(job.at("threads"));
  c10::Device device(job.value("device", "cpu"));
  if (device.is_cuda() && !device.has_index()) device.set_index(0);
  const Clock::time_point start = Clock::now();
  torch::jit::Module module = open(job, device);
  hybrid_rt::wait_for(device);
  json ready = {{"load_ms", milliseconds_since(start)}, {"engines", json::object()}};
  if (job.at("runtime") != "torchscript") {
    for (const hybrid_rt::EngineChoice& engine : hybrid_rt::engines(module)) {
      ready["engines"][engine.name] = engine.description;
    }
  }
  std::vector<std::vector<c10::IValue>> inputs;
  for (const at::Tensor& image : torch::jit::load(job.at("images")).attr("images").toTensorVector()) {
    inputs.push_back({c10::List<at::Tensor>({image.to(device)})});
  }
  hybrid_rt::wait_for(device);
  send(replies, ready);

  const c10::InferenceMode inference;
  for (std::string command; std::cin >> command;) {
    if (command == "memory") {
      send(replies, {{"peak", peak_memory()}});
      continue;
    }
    size_t image = 0;
    std::cin >> image;
    const Clock::time_point called = Clock::now();
    const c10::IValue result = module.forward(inputs.at(image));
    hybrid_rt::wait_for(device);
    const double time = milliseconds_since(called);
    send(replies, command == "boxes" ? boxes_of(result) : json{{"ms", time}});
  }
}

}  // namespace

int main(int count, char** arguments) {
  if (count != 2) {
    std::cerr << "usage: hybrid-rt-bench-worker JOB.json (started by hybrid-rt compare-engines)\n";
    return 2;
  }
  std::FILE* replies = nullptr;
  try {
    replies = take_stdout();
    work(json::parse(std::ifstream(arguments[1])), replies);
    return 0;
  } catch (const c10::Error& error) {
    if (replies != nullptr) send(replies, {{"error", error.what_without_backtrace()}});
  } catch (const std::exception& error) {
    if (replies != nullptr) send(replies, {{"error", error.what()}});
  }
  return 1;
}
