// Loads, runs and reloads bundles in many threads, for the sanitizers: tools/sanitize runs it.
//
//   hybrid_rt_stress SECONDS THREADS BUNDLE
//
// Every result is compared with that of one thread on the first variant that runs. Prints what it did. The exit code is
// 1 if a result differed or something threw.

#include <ATen/Parallel.h>
#include <torch/script.h>

#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "hybrid_rt/bundle.h"
#include "hybrid_rt/detector.h"

namespace {

using Clock = std::chrono::steady_clock;
using Size = std::pair<int64_t, int64_t>;

const std::vector<Size> kSizes{{96, 128}, {128, 96}, {112, 112}, {128, 160}};

at::Tensor image_of(const Size& size) {
  const at::Tensor row = torch::arange(3 * size.first * size.second).remainder(251) / 251.0;
  return row.reshape({3, size.first, size.second}).contiguous();
}

int64_t objects_in(torch::jit::Module& module, const at::Tensor& image) {
  const auto found = module.forward({c10::List<at::Tensor>({image})}).toList().get(0).toGenericDict();
  return found.at("scores").toTensor().gt(0.5).sum().item<int64_t>();
}

class Stress {
 public:
  explicit Stress(std::string path)
      : path_(std::move(path)), detector_(path_, {.load = {.threads = 1}, .workers = 3, .queue_capacity = 256}) {
    for (const hybrid_rt::EngineCheck& engine : hybrid_rt::check(path_)) {
      for (const hybrid_rt::VariantCheck& variant : engine.variants) {
        if (variant.refusal.empty()) backends_.push_back(variant.backend);
      }
    }
    for (const std::string& backend : backends_) {
      shared_.push_back(hybrid_rt::load(path_, {.backend = backend, .threads = 1, .concurrency = 4}));
    }
    for (const Size& size : kSizes) {
      images_.push_back(image_of(size));
      expected_.push_back(objects_in(shared_.front(), images_.back()));
    }
  }

  void run(unsigned seed, Clock::time_point end) {
    at::set_num_threads(1);
    const c10::InferenceMode no_gradients;
    std::mt19937 chance(seed);
    while (Clock::now() < end) {
      try {
        step(chance);
      } catch (const std::exception& error) {
        failed("threw", error.what());
      }
    }
  }

  int report(double seconds) const {
    std::string backends;
    for (const std::string& backend : backends_) backends += (backends.empty() ? "" : ", ") + backend;
    std::printf("stress: %.0f s on %s: %d loads, %d runs of shared modules, %d of own ones, %d by the detector, ",
                seconds, backends.c_str(), loads_.load(), shared_runs_.load(), own_runs_.load(), detected_.load());
    std::printf("%d reloads, %d checks; %d failures\n", reloads_.load(), checks_.load(), failures_.load());
    return failures_.load() == 0 && shared_runs_.load() > 0 && loads_.load() > 0 ? 0 : 1;
  }

 private:
  void step(std::mt19937& chance) {
    const size_t size = chance() % kSizes.size();
    const size_t backend = chance() % backends_.size();
    const unsigned what = chance() % 16;
    if (what < 3) {
      torch::jit::Module own = hybrid_rt::load(path_, {.backend = backends_[backend], .threads = 1});
      ++loads_;
      compare(objects_in(own, images_[size]), size);
      ++own_runs_;
    } else if (what < 4) {
      if (hybrid_rt::check(path_).empty()) failed("check", "no engine");
      ++checks_;
    } else if (what < 5) {
      detector_.reload();
      ++reloads_;
    } else if (what < 9) {
      detect(size);
    } else {
      compare(objects_in(shared_[backend], images_[size]), size);
      ++shared_runs_;
    }
  }

  void detect(size_t size) {
    try {
      const hybrid_rt::DetectResult result = detector_.detect(images_[size]);
      int64_t count = 0;
      for (const hybrid_rt::Detection& object : result.detections.objects) count += object.score > 0.5F ? 1 : 0;
      compare(count, size);
      ++detected_;
    } catch (const hybrid_rt::BusyError&) {  // the queue is full
    }
  }

  void compare(int64_t got, size_t size) {
    if (got != expected_[size]) {
      failed("objects", "expected " + std::to_string(expected_[size]) + ", got " + std::to_string(got));
    }
  }

  void failed(const char* what, const std::string& text) {
    if (failures_++ < 20) std::fprintf(stderr, "stress: %s: %s\n", what, text.c_str());
  }

  std::string path_;
  hybrid_rt::Detector detector_;
  std::vector<std::string> backends_{};
  std::vector<torch::jit::Module> shared_{};
  std::vector<at::Tensor> images_{};
  std::vector<int64_t> expected_{};
  std::atomic<int> loads_{0}, shared_runs_{0}, own_runs_{0}, detected_{0}, reloads_{0}, checks_{0}, failures_{0};
};

}  // namespace

int main(int argc, char** argv) {
  if (argc != 4) {
    std::fprintf(stderr, "usage: hybrid_rt_stress SECONDS THREADS BUNDLE\n");
    return 2;
  }
  // torch's thread pool uses OpenMP, whose barriers ThreadSanitizer does not see.
  at::set_num_threads(1);
  const int seconds = std::atoi(argv[1]);
  Stress stress(argv[3]);
  const Clock::time_point begin = Clock::now();
  std::vector<std::thread> threads;
  for (int i = 0; i < std::atoi(argv[2]); ++i) {
    threads.emplace_back([&stress, i, end = begin + std::chrono::seconds(seconds)] { stress.run(i, end); });
  }
  for (std::thread& thread : threads) thread.join();
  return stress.report(std::chrono::duration<double>(Clock::now() - begin).count());
}
