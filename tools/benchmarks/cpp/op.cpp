#include <openvino/openvino.hpp>

#include <fstream>
#include <iostream>
#include <iterator>

#include <ATen/Parallel.h>

#include "hybrid_rt/hybrid_rt.h"
#include "timing.h"

// bench_op NOOP_PLUGIN_DIRECTORY NOOP.pt ENGINE.pt XML ROUNDS
//
// Measures the op's own cost: a no-op engine called through it, and an OpenVINO engine called through it and through
// OpenVINO's C++ interface, with the same IR and input. NOOP.pt and ENGINE.pt are scripted modules of one tensor that
// hold an engine and an `example`. Prints JSON.

namespace {

constexpr int kCallsPerRound = 1000;

}  // namespace

int main(int count, char** arguments) try {
  if (count != 6) {
    std::cerr << "usage: bench_op NOOP_PLUGIN_DIRECTORY NOOP.pt ENGINE.pt XML ROUNDS\n";
    return 2;
  }
  hybrid_rt::add_plugin_folder(arguments[1]);
  const int rounds = std::stoi(arguments[5]);
  const c10::InferenceMode inference;
  nlohmann::json result;

  auto noop = torch::jit::load(arguments[2]);
  const auto small = noop.attr("example").toTensor();
  const auto plain = interleaved({{"noop",
                                   [&] {
                                     for (int i = 0; i < kCallsPerRound; ++i) noop.forward({small});
                                   }}},
                                 3, rounds);
  result["noop_us"] = plain["noop"]["median_ms"].get<double>() * 1e3 / kCallsPerRound;

  auto engine = torch::jit::load(arguments[3]);
  const at::Tensor input = engine.attr("example").toTensor();
  ov::Core core;
  auto compiled =
      core.compile_model(arguments[4], "CPU", ov::hint::performance_mode(ov::hint::PerformanceMode::LATENCY),
                         ov::inference_num_threads(at::get_num_threads()),
                         ov::hint::inference_precision(ov::element::f32), ov::hint::enable_cpu_pinning(false));
  auto request = compiled.create_infer_request();
  const auto sizes = input.sizes();
  const ov::Tensor view(ov::element::f32, ov::Shape(sizes.begin(), sizes.end()), input.data_ptr());
  request.set_input_tensor(view);
  result["engine"] =
      interleaved({{"openvino", [&] { request.infer(); }}, {"op", [&] { engine.forward({input}); }}}, 3, rounds);
  result["op_over_openvino"] =
      result["engine"]["op"]["median_ms"].get<double>() / result["engine"]["openvino"]["median_ms"].get<double>();
  std::cout << result.dump() << "\n";
  return 0;
} catch (const std::exception& error) {
  std::cerr << "bench_op: error: " << error.what() << "\n";
  return 1;
}
