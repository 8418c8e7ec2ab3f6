#include "hybrid_rt/detector.h"

#include <doctest/doctest.h>
#include <sched.h>

#include <atomic>
#include <cstdlib>
#include <filesystem>
#include <future>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "demo_bundle.h"
#include "failure_of.h"
#include "hybrid_rt/message.h"
#include "temporary.h"

// Uses the demo detector's bundle, which HYBRID_RT_TEST_BUNDLE names.

namespace {

using namespace std::chrono_literals;
using hybrid_rt::Detections;
using hybrid_rt::Detector;
using hybrid_rt::DetectorOptions;
using hybrid_rt::DetectOutcome;
using hybrid_rt::DetectRequest;
using hybrid_rt::Error;
using hybrid_rt::ErrorKind;

at::Tensor noise(std::int64_t height, std::int64_t width, std::uint64_t seed) {
  at::manual_seed(seed);
  return at::rand({3, height, width});
}

bool are_equal(const Detections& a, const Detections& b) {
  if (a.objects.size() != b.objects.size()) return false;
  for (std::size_t i = 0; i < a.objects.size(); ++i) {
    if (a.objects[i].label != b.objects[i].label || std::abs(a.objects[i].score - b.objects[i].score) > 1e-4F) {
      return false;
    }
  }
  return true;
}

Detections found_by_module(const at::Tensor& image) {
  torch::jit::Module module = hybrid_rt::load(bundle());
  return hybrid_rt::detections_from(module.forward({c10::List<at::Tensor>({image})}), 1)[0];
}

ErrorKind kind_of(Detector& detector, const at::Tensor& image) {
  try {
    detector.detect(image);
  } catch (const Error& error) {
    return error.kind();
  }
  FAIL("it was answered");
  return ErrorKind::kBundle;
}

}  // namespace

TEST_CASE("a detector pins threads if its only worker uses every CPU") {
  cpu_set_t cpus;
  REQUIRE(sched_getaffinity(0, sizeof cpus, &cpus) == 0);
  if (CPU_COUNT(&cpus) == 1) return;  // one thread is never pinned
  for (const int workers : {1, 2}) {
    Detector detector(bundle(), {.load = {.backend = "openvino", .threads = CPU_COUNT(&cpus)}, .workers = workers});
    const std::string description = detector.status().engines.at(0).description;
    CHECK((description.find(" pinned threads") != std::string::npos) == (workers == 1));
  }
}

TEST_CASE("a detector gives its module's results in several threads at once") {
  std::vector<at::Tensor> images;
  for (std::uint64_t i = 0; i < 6; ++i) images.push_back(noise(64 + 8 * static_cast<std::int64_t>(i), 96, i));
  std::vector<Detections> expected;
  for (const at::Tensor& image : images) expected.push_back(found_by_module(image));

  Detector detector(bundle(), {.workers = 2});
  std::vector<std::future<hybrid_rt::DetectResult>> found;
  std::shared_ptr<const hybrid_rt::ClassNames> found_names;
  for (const at::Tensor& image : images) {
    found.push_back(std::async(std::launch::async, [&detector, image] { return detector.detect(image); }));
  }
  for (std::size_t i = 0; i < images.size(); ++i) {
    const hybrid_rt::DetectResult result = found[i].get();
    CHECK(are_equal(result.detections, expected[i]));
    CHECK(result.height == images[i].size(1));
    CHECK(result.width == 96);
    CHECK(result.timing.run > 0);
    found_names = result.class_names;
  }
  CHECK(hybrid_rt::class_name(1, *found_names) == "0");
  CHECK(*detector.status().class_names == *found_names);
  CHECK(detector.status().queued == 0);
  CHECK(detector.status().engines.at(0).name == "backbone");
}

TEST_CASE("uint8 and float images give the same results") {
  const at::Tensor bytes = at::randint(0, 256, {48, 64, 3}, at::kByte);
  const at::Tensor floats = bytes.permute({2, 0, 1}).to(at::kFloat).div(255);
  Detector detector(bundle());
  CHECK(are_equal(detector.detect(bytes).detections, detector.detect(floats.contiguous()).detections));
}

TEST_CASE("a batch answers each of its images") {
  Detector detector(bundle(), {.load = {.warm_up = {{64, 64}}}, .max_batch = 4, .max_delay = 500ms});
  std::vector<std::promise<DetectOutcome>> promises(4);
  std::vector<DetectRequest> requests;
  for (std::size_t i = 0; i < promises.size(); ++i) {
    const at::Tensor image = noise(64, 64, i);
    requests.push_back({.pixels = [image] { return image; },
                        .size = {{64, 64}},
                        .done = [&promise = promises[i]](DetectOutcome outcome) { promise.set_value(outcome); }});
  }
  detector.submit(std::move(requests));
  for (std::size_t i = 0; i < promises.size(); ++i) {
    const DetectOutcome outcome = promises[i].get_future().get();
    REQUIRE_FALSE(outcome.error);
    CHECK(outcome.result.batch == 4);
    CHECK(are_equal(outcome.result.detections, found_by_module(noise(64, 64, i))));
  }
}

TEST_CASE("an image that can't be decoded fails without the rest of its batch") {
  Detector detector(bundle(), {.max_batch = 2, .max_delay = 500ms});
  std::promise<DetectOutcome> good;
  std::promise<DetectOutcome> bad;
  std::vector<DetectRequest> requests(2);
  requests[0] = {.pixels = [] { return noise(64, 64, 1); },
                 .size = {{64, 64}},
                 .done = [&good](DetectOutcome outcome) { good.set_value(outcome); }};
  requests[1] = {.pixels = []() -> at::Tensor { throw std::runtime_error("no image"); },
                 .size = {{64, 64}},
                 .done = [&bad](DetectOutcome outcome) { bad.set_value(outcome); }};
  detector.submit(std::move(requests));
  CHECK_FALSE(good.get_future().get().error);
  CHECK_THROWS_WITH(std::rethrow_exception(bad.get_future().get().error), "no image");
}

TEST_CASE("images that a detector does not accept are refused") {
  Detector detector(bundle());
  CHECK(kind_of(detector, at::zeros({3, 8})) == ErrorKind::kInput);
  CHECK(kind_of(detector, at::zeros({8, 8, 4}, at::kByte)) == ErrorKind::kInput);
  CHECK(kind_of(detector, at::zeros({3, 0, 8})) == ErrorKind::kInput);
  CHECK(kind_of(detector, at::Tensor()) == ErrorKind::kInput);
  CHECK_FALSE(detector.detect(at::zeros({3, 32, 32})).height == 0);  // it still works
}

TEST_CASE("an expired deadline has an error of its own") {
  Detector detector(bundle());
  try {
    detector.detect(at::zeros({3, 64, 64}), std::chrono::steady_clock::now() - 1s);
    FAIL("it was answered");
  } catch (const Error& error) {
    CHECK(error.kind() == ErrorKind::kDeadline);
    CHECK(
        std::string(error.what()) ==
        "hybrid_rt[detector]: request: expected to be done before its deadline, got too little time left when its turn "
        "came. Allow more time, or send fewer images at once.");
  }
}

TEST_CASE("a reload loses no request") {
  Detector detector(bundle(), {.workers = 2});
  std::atomic<bool> done{false};
  std::atomic<int> answered{0};
  std::thread client([&] {
    while (!done) {
      detector.detect(noise(48, 48, 1));
      ++answered;
    }
  });
  detector.reload();
  const int before = answered;
  while (answered == before) std::this_thread::sleep_for(1ms);
  done = true;
  client.join();
  CHECK(detector.status().loads == 2);
}

TEST_CASE("a failed reload keeps the old module") {
  const TemporaryDirectory directory;
  const std::string path = directory.file("copy.pt");
  std::filesystem::copy_file(bundle(), path);
  Detector detector(path);
  std::filesystem::resize_file(path, 1000);
  CHECK_THROWS_AS(detector.reload(), Error);
  CHECK(detector.status().loads == 1);
  CHECK(detector.detect(noise(48, 48, 1)).height == 48);
}

TEST_CASE("after stop(), accepted requests are answered and new ones refused") {
  Detector detector(bundle());
  std::atomic<int> answered{0};
  std::vector<DetectRequest> requests;
  for (int i = 0; i < 3; ++i) {
    requests.push_back({.pixels = [] { return noise(48, 48, 1); },
                        .done = [&answered](DetectOutcome outcome) { answered += outcome.error ? 0 : 1; }});
  }
  detector.submit(std::move(requests));
  detector.stop();
  CHECK(answered == 3);
  CHECK(kind_of(detector, noise(48, 48, 1)) == ErrorKind::kBusy);
}

TEST_CASE("invalid numbers are refused before anything is loaded") {
  CHECK(std::string(failure_of([] { Detector("/no/such/file.pt", {.workers = 0}); }).what()) ==
        "hybrid_rt[detector]: workers: expected 1 to 1024, got 0.");
  CHECK_THROWS_AS(Detector("/no/such/file.pt", {.queue_capacity = 0}), Error);
  CHECK_THROWS_AS(Detector("/no/such/file.pt", {.max_batch = 0}), Error);
}

TEST_CASE("an engine's input error is kInput again after TorchScript") {
  const std::runtime_error wrapped(
      "The following operation failed in the TorchScript interpreter.\nTraceback ...\nRuntimeError: "
      "hybrid_rt[openvino]: engine 'backbone', input 'x': expected 1x3x64x64, got 1x3x65x64. Resize it.");
  const Error error = hybrid_rt::as_error(wrapped, ErrorKind::kBackend, "detector", "forward");
  CHECK(error.kind() == ErrorKind::kInput);
  CHECK(std::string(error.what()).rfind("hybrid_rt[openvino]: engine 'backbone', input 'x'", 0) == 0);
  const Error other =
      hybrid_rt::as_error(std::runtime_error("out of luck"), ErrorKind::kBackend, "detector", "forward");
  CHECK(other.kind() == ErrorKind::kBackend);
  CHECK(std::string(other.what()).find("expected no failure, got \"out of luck\"") != std::string::npos);
}
