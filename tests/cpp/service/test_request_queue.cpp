#include "service/request_queue.h"

#include <doctest/doctest.h>

#include <optional>
#include <string>
#include <thread>
#include <vector>

namespace {

using namespace std::chrono_literals;
using hybrid_rt::BusyError;
using hybrid_rt::DetectorOptions;
using hybrid_rt::DetectRequest;
using hybrid_rt::RequestQueue;
using Clock = RequestQueue::Clock;

DetectRequest request(std::pair<std::int64_t, std::int64_t> size = {100, 100},
                      std::optional<Clock::duration> deadline = std::nullopt) {
  DetectRequest made;
  made.size = size;
  if (deadline) made.deadline = Clock::now() + *deadline;
  return made;
}

std::vector<DetectRequest> requests(std::size_t count, std::optional<Clock::duration> deadline = std::nullopt) {
  std::vector<DetectRequest> made;
  for (std::size_t i = 0; i < count; ++i) made.push_back(request({100, 100}, deadline));
  return made;
}

/// Returns the text of the refusal; empty if the requests were accepted.
std::string refusal(RequestQueue& queue, std::vector<DetectRequest> given) {
  try {
    queue.push(std::move(given));
    return "";
  } catch (const BusyError& error) {
    CHECK(error.kind() == hybrid_rt::ErrorKind::kBusy);
    CHECK(error.retry_after() >= 1s);
    return error.what();
  }
}

/// Runs an image that takes this long through the queue.
void run_one(RequestQueue& queue, Clock::duration took) {
  queue.push(requests(1));
  REQUIRE(queue.take().ready.size() == 1);
  queue.done(1, took);
}

}  // namespace

TEST_CASE("a queue accepts all of the requests or none") {
  RequestQueue queue({.queue_capacity = 3});
  queue.push(requests(2));
  CHECK(refusal(queue, requests(2)) ==
        "hybrid_rt[detector]: request: expected room for 2 in the queue of 3, got 2 that wait. Retry in 1 s, or add "
        "workers.");
  CHECK(queue.length() == 2);
  CHECK(refusal(queue, requests(1)).empty());
}

TEST_CASE("without batching, images are taken one by one in order") {
  RequestQueue queue(DetectorOptions{});
  queue.push(requests(1));
  queue.push([] {
    std::vector<DetectRequest> one;
    one.push_back(request({7, 8}));
    return one;
  }());
  CHECK(queue.take().ready.at(0).request.size->first == 100);
  CHECK(queue.take().ready.at(0).request.size->first == 7);
  CHECK(queue.running() == 2);
}

TEST_CASE("a batch contains images of one bucket, and the others wait") {
  RequestQueue queue({.max_batch = 4, .size_bucket = 64});
  std::vector<DetectRequest> given;
  for (const std::int64_t height : {100, 250, 128, 65, 193}) given.push_back(request({height, 100}));
  queue.push(std::move(given));
  std::vector<std::int64_t> heights;
  for (const auto& waiting : queue.take().ready) heights.push_back(waiting.request.size->first);
  CHECK(heights == std::vector<std::int64_t>{100, 128, 65});
  heights.clear();
  for (const auto& waiting : queue.take().ready) heights.push_back(waiting.request.size->first);
  CHECK(heights == std::vector<std::int64_t>{250, 193});
}

TEST_CASE("a batch waits for the delay or until it is full") {
  RequestQueue queue({.max_batch = 2, .max_delay = 10s});
  queue.push(requests(1));
  std::thread other([&queue] {
    std::this_thread::sleep_for(20ms);
    queue.push(requests(1));
  });
  CHECK(queue.take().ready.size() == 2);
  other.join();

  RequestQueue impatient({.max_batch = 2, .max_delay = 1ms});
  impatient.push(requests(1));
  CHECK(impatient.take().ready.size() == 1);
}

TEST_CASE("a request that can't meet its deadline is refused on arrival") {
  RequestQueue queue(DetectorOptions{});
  run_one(queue, 200ms);
  queue.push(requests(1));
  REQUIRE(queue.take().ready.size() == 1);  // a worker has it
  const std::string text = refusal(queue, requests(1, 100ms));
  CHECK(text.find("expected a deadline that can be met, got ") != std::string::npos);
  CHECK(refusal(queue, requests(1, 10s)).empty());
  CHECK(refusal(queue, requests(1)).empty());
}

TEST_CASE("an idle queue accepts any deadline, because the estimate may be outdated") {
  RequestQueue queue(DetectorOptions{});
  run_one(queue, 200ms);
  CHECK(refusal(queue, requests(1, 100ms)).empty());
}

TEST_CASE("a request that waited past its deadline is not run") {
  RequestQueue queue(DetectorOptions{});
  queue.push(requests(1, 1ms));
  queue.push(requests(1));
  std::this_thread::sleep_for(5ms);
  const auto batch = queue.take();
  CHECK(batch.late.size() == 1);
  CHECK(batch.ready.size() == 1);
}

TEST_CASE("a stopped queue refuses requests and hands out the remaining ones") {
  RequestQueue queue(DetectorOptions{});
  queue.push(requests(2));
  queue.stop();
  CHECK(refusal(queue, requests(1)).find("got one that is stopping") != std::string::npos);
  CHECK(queue.take().ready.size() == 1);
  CHECK(queue.take().ready.size() == 1);
  CHECK(queue.take().ready.empty());
}
