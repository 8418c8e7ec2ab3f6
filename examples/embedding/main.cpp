// A custom service around hybrid_rt::Detector: images (PPM) from several threads, a bounded queue, a deadline.
//
//   embedding MODEL.pt IMAGE.ppm...      prints "IMAGE: N objects, best CLASS SCORE" for each, in their order

#include <hybrid_rt/detector.h>

#include <chrono>
#include <fstream>
#include <future>
#include <iostream>
#include <string>
#include <thread>
#include <vector>

namespace {

using namespace std::chrono_literals;

/// Reads a PPM file as uint8 [H, W, 3].
at::Tensor read_ppm(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::string magic;
  int64_t width = 0;
  int64_t height = 0;
  int64_t largest = 0;
  file >> magic >> width >> height >> largest;
  file.get();
  if (!file || magic != "P6" || largest != 255 || width < 1 || height < 1 || width > 8192 || height > 8192) {
    throw std::runtime_error(path + ": expected a PPM (P6) of 8 bits");
  }
  at::Tensor pixels = at::empty({height, width, 3}, at::kByte);
  file.read(static_cast<char*>(pixels.mutable_data_ptr()), pixels.numel());
  if (!file) throw std::runtime_error(path + ": it ends too early");
  return pixels;
}

/// Handles a request, in any thread. If the queue is full, it retries after the time that the error states.
std::string handle(hybrid_rt::Detector& detector, const std::string& path) {
  const at::Tensor pixels = read_ppm(path);
  for (int attempt = 0;; ++attempt) {
    try {
      const auto deadline = std::chrono::steady_clock::now() + 30s;
      const hybrid_rt::DetectResult result = detector.detect(pixels, deadline);
      const auto& objects = result.detections.objects;
      std::string line = path + ": " + std::to_string(objects.size()) + " objects";
      if (!objects.empty()) {
        line += ", best " + hybrid_rt::class_text(objects[0].label, *result.class_names) + " " +
                std::to_string(objects[0].score);
      }
      return line;
    } catch (const hybrid_rt::BusyError& busy) {
      if (attempt == 5) throw;
      std::this_thread::sleep_for(busy.retry_after());
    }
  }
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 3) {
    std::cerr << "usage: embedding MODEL.pt IMAGE.ppm...\n";
    return 2;
  }
  try {
    // Two workers run two images concurrently. They are warmed up before the first request.
    hybrid_rt::Detector detector(argv[1], {.load = {.warm_up = {{480, 640}}}, .workers = 2, .queue_capacity = 4});
    std::vector<std::future<std::string>> answers;
    for (int i = 2; i < argc; ++i) {
      answers.push_back(std::async(std::launch::async, handle, std::ref(detector), std::string(argv[i])));
    }
    for (auto& answer : answers) std::cout << answer.get() << "\n";
    return 0;
  } catch (const std::exception& error) {
    std::cerr << error.what() << "\n";
    return 1;
  }
}
