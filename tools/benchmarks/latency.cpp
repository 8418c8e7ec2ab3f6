#include <dlfcn.h>

#include <cstdio>
#include <iostream>

#include <ATen/Parallel.h>

#include "hybrid_rt/hybrid_rt.h"
#include "timing.h"

// bench_latency THREADS WARM_UP ROUNDS PICTURE.pt TORCHVISION_LIBRARY NAME=KIND:PATH ...
// Times detectors in one process, in turns. PICTURE.pt is a module whose attribute `picture` is [3, H, W]; KIND is
// "torchscript" (a plain archive, torchvision's operators) or "hybrid" (a bundle). Prints JSON: latency, load time and
// boxes of each.

namespace {

torch::jit::Module load(const std::string& kind, const std::string& path, int threads) {
  if (kind == "torchscript") {
    auto module = torch::jit::load(path, torch::kCPU);
    module.eval();
    return module;
  }
  hybrid_rt::LoadOptions options;
  options.threads = threads;
  return hybrid_rt::load(path, options);
}

size_t count_boxes(const c10::IValue& result) {
  const auto detections = result.isTuple() ? result.toTupleRef().elements()[1].toList() : result.toList();
  return static_cast<size_t>(detections.get(0).toGenericDict().at("boxes").toTensor().size(0));
}

}  // namespace

int main(int count, char** arguments) try {
  if (count < 7) {
    std::cerr << "usage: bench_latency THREADS WARM_UP ROUNDS PICTURE.pt TORCHVISION_LIBRARY NAME=KIND:PATH ...\n";
    return 2;
  }
  const int threads = std::stoi(arguments[1]);
  at::set_num_threads(threads);
  if (dlopen(arguments[5], RTLD_NOW | RTLD_GLOBAL) == nullptr) throw std::runtime_error(dlerror());
  const auto picture = torch::jit::load(arguments[4]).attr("picture").toTensor();
  c10::List<at::Tensor> pictures;
  pictures.push_back(picture);

  std::vector<torch::jit::Module> modules;
  std::vector<std::string> names;
  nlohmann::json extra;
  for (int i = 6; i < count; ++i) {
    const std::string text = arguments[i];
    const auto equals = text.find('=');
    const auto colon = text.find(':', equals);
    const std::string kind = text.substr(equals + 1, colon - equals - 1);
    names.push_back(text.substr(0, equals));
    const double load_ms = timed([&] { modules.push_back(load(kind, text.substr(colon + 1), threads)); });
    extra[names.back()]["load_ms"] = load_ms;
    if (kind == "hybrid") extra[names.back()]["engines"] = hybrid_rt::choices(modules.back());
  }
  const c10::InferenceMode inference;
  std::vector<std::pair<std::string, std::function<void()>>> cases;
  for (size_t i = 0; i < modules.size(); ++i) {
    cases.emplace_back(names[i], [&, i] { extra[names[i]]["boxes"] = count_boxes(modules[i].forward({pictures})); });
  }
  nlohmann::json result = interleaved(cases, std::stoi(arguments[2]), std::stoi(arguments[3]));
  result.merge_patch(extra);
  std::cout << result.dump() << "\n";
  return 0;
} catch (const std::exception& error) {
  std::cerr << "bench_latency: error: " << error.what() << "\n";
  return 1;
}
