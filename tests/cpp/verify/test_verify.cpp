#include "hybrid_rt/verify.h"

#include <doctest/doctest.h>
#include <torch/script.h>
#include <limits>

#include <cmath>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "demo_bundle.h"
#include "failure_of.h"

// tests/python/verification/ has more cases of the rule, and a reference implementation.

namespace {

using hybrid_rt::BoxMatch;
using hybrid_rt::Error;
using hybrid_rt::ErrorKind;
using hybrid_rt::Thresholds;
using hybrid_rt::Verification;

c10::IValue detections(const std::vector<std::vector<float>>& boxes, const std::vector<float>& scores) {
  at::Tensor corners = torch::zeros({static_cast<int64_t>(boxes.size()), 4});
  for (size_t i = 0; i < boxes.size(); ++i) corners[static_cast<int64_t>(i)] = torch::tensor(boxes[i]);
  c10::Dict<std::string, at::Tensor> image;
  image.insert("boxes", corners);
  image.insert("labels", torch::ones({static_cast<int64_t>(boxes.size())}, at::kLong));
  image.insert("scores", torch::tensor(scores));
  return c10::List<c10::Dict<std::string, at::Tensor>>({image});
}

}  // namespace

TEST_CASE("a bundle matches its detector") {
  const Verification verification = hybrid_rt::verify(bundle());
  CHECK(verification.passed());
  CHECK(verification.compared);
  CHECK(verification.precision == "fp32");
  REQUIRE(verification.engines.size() == 1);
  CHECK(verification.engines[0].name == hybrid_rt::check(bundle())[0].engine);
  CHECK_FALSE(verification.engines[0].description.empty());
  REQUIRE(verification.pictures.size() == 1);
  const BoxMatch& match = verification.pictures[0];
  CHECK(match.expected >= 5);
  CHECK(match.matched >= 5);
  CHECK(match.min_iou > 0.99);
  CHECK(match.where == "golden sample, image 0");
}

TEST_CASE("a service verifies the module that it has loaded") {
  torch::jit::Module module = hybrid_rt::load(bundle(), {.backend = "torchscript"});
  CHECK(hybrid_rt::verify(bundle(), module).passed());
}

TEST_CASE("custom thresholds can be tighter") {
  const Verification verification = hybrid_rt::verify(bundle(), {.backend = "torchscript"}, Thresholds{.iou = 1.5});
  REQUIRE(verification.failures.size() == 1);
  CHECK(contains(verification.failures[0], "golden sample, image 0: 0 of "));
  CHECK(contains(verification.failures[0], "IoU >= 1.5"));
  CHECK(contains(verification.failures[0], "s box of label "));  // the box with the higher score, by a rounding
}

TEST_CASE("missing and extra boxes are named") {
  const c10::IValue two = detections({{0, 0, 10, 10}, {20, 0, 30, 10}}, {0.9F, 0.8F});
  const c10::IValue one = detections({{0, 0, 10, 10}}, {0.9F});
  CHECK(hybrid_rt::compare(two, two, {}, "here").passed());
  const Verification lost = hybrid_rt::compare(two, one, {}, "here");
  REQUIRE(lost.failures.size() == 1);
  CHECK(contains(lost.failures[0], "here, image 0: 1 of 2 boxes matched among 1"));
  CHECK(contains(lost.failures[0], "the detector's box of label 1, score 0.800 at (20.0, 0.0, 30.0, 10.0)"));
  CHECK(contains(hybrid_rt::compare(one, two, {}, "here").failures.at(0), "the hybrid's box of label 1, score 0.800"));
}

TEST_CASE("nested tensors are compared by name") {
  const auto nest = [](float value) {
    c10::impl::GenericDict dict(c10::StringType::get(), c10::AnyType::get());
    dict.insert("a", torch::ones({2}));
    dict.insert("b", c10::List<at::Tensor>({torch::full({2}, value)}));
    return c10::ivalue::Tuple::create({torch::zeros({0, 4}), dict});
  };
  const Verification equal = hybrid_rt::compare(nest(1), nest(1), {}, "here");
  CHECK(equal.passed());
  REQUIRE(equal.outputs.size() == 3);
  CHECK(equal.outputs[2].output == "output.1.b.0");
  const Verification other = hybrid_rt::compare(nest(1), nest(2), {}, "here");
  REQUIRE(other.failures.size() == 1);
  CHECK(other.failures[0] == "here, output 'output.1.b.0': relative error 1 (allowed 0.001), cosine 1.000000");
}

TEST_CASE("rows of detections in a tuple may change places within near-ties") {
  const at::Tensor boxes =
      torch::tensor({{0.0F, 0.0F, 10.0F, 10.0F}, {20.0F, 0.0F, 30.0F, 9.0F}, {5.0F, 5.0F, 9.0F, 9.0F}});
  const at::Tensor scores = torch::tensor({0.8F, 0.7999F, 0.5F});
  const auto passed = [&](const std::vector<int64_t>& order, const at::Tensor& found_scores) {
    const at::Tensor moved = boxes.index_select(0, torch::tensor(order));
    return hybrid_rt::compare(c10::ivalue::Tuple::create({boxes, scores}),
                              c10::ivalue::Tuple::create({moved, found_scores}), {}, "here")
        .passed();
  };
  CHECK(passed({1, 0, 2}, torch::tensor({0.8001F, 0.7999F, 0.5F})));
  CHECK_FALSE(passed({1, 0, 2}, torch::tensor({0.7999F, 0.8F, 0.5F})));  // a recorded order
  CHECK_FALSE(passed({0, 2, 1}, scores));
  CHECK_FALSE(passed({1, 0, 2}, torch::tensor({0.81F, 0.7999F, 0.5F})));
}

TEST_CASE("whole numbers have to be equal, unless the limit allows for more than rounding") {
  const at::Tensor labels = torch::tensor({3, 4000});
  const at::Tensor others = torch::tensor({4, 4000});
  CHECK(hybrid_rt::compare(labels, labels.clone(), {}, "here").passed());
  CHECK(hybrid_rt::compare(labels, others, {}, "here").outputs.at(0).relative_error == 1);
  CHECK_FALSE(hybrid_rt::compare(labels, others, {}, "here").passed());
  CHECK(hybrid_rt::compare(labels, others, {.relative_error = 0.02}, "here").passed());
}

TEST_CASE("a different shape, a different dtype and a non-finite number are infinite errors") {
  for (const at::Tensor& found :
       {torch::ones({3}), torch::ones({2}, at::kDouble), torch::tensor({1.0F, INFINITY}), torch::tensor({NAN, 1.0F})}) {
    const Verification verification = hybrid_rt::compare(torch::ones({2}), found, {}, "here");
    CHECK_FALSE(verification.passed());
    CHECK(std::isinf(verification.outputs.at(0).relative_error));
    CHECK(nlohmann::json::parse(to_json(verification)).at("tensors").at(0).at("relative_error").is_null());
  }
}

TEST_CASE("infinities and NaN on both sides are equal") {
  const at::Tensor expected = torch::tensor({1.0F, INFINITY, -INFINITY, NAN});
  const Verification equal = hybrid_rt::compare(expected, expected.clone(), {}, "here");
  CHECK(equal.passed());
  CHECK(equal.outputs.at(0).relative_error == 0);
  for (const int64_t place : {1, 2, 3}) {
    at::Tensor found = expected.clone();
    found[place] = 1;
    CHECK(std::isinf(hybrid_rt::compare(expected, found, {}, "here").outputs.at(0).relative_error));
  }
}

TEST_CASE("boxes without area match by their edges") {
  const c10::IValue line = detections({{5, 0, 5, 10}}, {0.9F});
  CHECK(hybrid_rt::compare(line, detections({{5.004F, 0, 5.004F, 10}}, {0.9F}), {}, "here").passed());
  CHECK_FALSE(hybrid_rt::compare(line, detections({{5.02F, 0, 5.02F, 10}}, {0.9F}), {}, "here").passed());
  CHECK_FALSE(hybrid_rt::compare(line, detections({{5, 0, 5, 11}}, {0.9F}), {}, "here").passed());
}

TEST_CASE("plain values are compared, and floats may differ by rounding") {
  const auto failures = [](const c10::IValue& expected, const c10::IValue& found) {
    return hybrid_rt::compare(expected, found, {}, "here").failures;
  };
  const auto empty = c10::List<at::Tensor>();
  for (const c10::IValue& value : {c10::IValue(3), c10::IValue(true), c10::IValue("a"), c10::IValue(),
                                   c10::IValue(empty), c10::IValue(std::numeric_limits<double>::quiet_NaN())}) {
    CAPTURE(value.tagKind());
    CHECK(failures(value, value).empty());
    CHECK(failures(value, c10::IValue(2)) != failures(value, value));
  }
  CHECK(failures(1.0, 1.0 + 1e-6).empty());
  CHECK(failures(1.0, 1.01) == std::vector<std::string>{"here, output 'output': 1.0 expected, 1.01 found"});
  CHECK(failures(1.0, std::numeric_limits<double>::infinity()).size() == 1);
  CHECK(failures(at::ones({1}), 1) == std::vector<std::string>{"here, output 'output': a tensor expected, 1 found"});
  CHECK(failures(c10::IValue(), at::Tensor()).empty());  // an undefined tensor is TorchScript's None
}

TEST_CASE("a result that contains an object is refused") {
  const c10::IValue device = c10::Device(c10::kCPU);
  const Error error = failure_of([&] { hybrid_rt::compare(device, device, {}, "here"); });
  CHECK(error.kind() == ErrorKind::kInput);
  CHECK(contains(
      error.what(),
      "the result, output: expected tensors, numbers, strings and None in lists, tuples and dicts, got Device."));
}

TEST_CASE("thresholds default to those of fp32") {
  const Thresholds thresholds;
  CHECK(thresholds.mask_iou == 0.97);
  CHECK(thresholds.keypoint_distance == 0.02);
  CHECK(thresholds.keypoint_recall == 0.95);
}

TEST_CASE("every threshold is in the JSON") {
  Verification verification;
  verification.thresholds.iou = 0.25;
  const auto document = nlohmann::json::parse(to_json(verification));
  CHECK(document.at("thresholds").size() == hybrid_rt::kThresholdFields.size());
  CHECK(Thresholds::from_json(document.at("thresholds").dump()).iou == 0.25);
}

TEST_CASE("thresholds with a missing number are refused as damage") {
  CHECK(Thresholds::from_json(R"({"iou": 0.5, "score": 0.1, "recall": 0.9, "relative_error": 0.2, "mask_iou": 0.3,
    "keypoint_distance": 0.4, "keypoint_recall": 0.6})")
            .keypoint_recall == 0.6);
  for (const char* text : {"", "{}", R"({"iou": "much"})"}) {
    CAPTURE(text);
    CHECK(failure_of([&] { Thresholds::from_json(text); }).kind() == ErrorKind::kBundle);
  }
}

TEST_CASE("a missing contract is refused before the bundle is loaded") {
  const Error error = failure_of(
      [] { hybrid_rt::verify(bundle(), {.backend = "no such backend"}, std::nullopt, hybrid_rt::LatencyOptions{}); });
  CHECK(error.kind() == ErrorKind::kBundle);
  CHECK(contains(error.what(), "expected a latency contract, got none."));
}

TEST_CASE("a broken contract does not count as a mismatch of the detector") {
  Verification verification;
  verification.latency = hybrid_rt::LatencyCheck{.failures = {"too slow"}};
  CHECK(verification.matches());
  CHECK_FALSE(verification.passed());
  const auto document = nlohmann::json::parse(to_json(verification));
  CHECK(document.at("passed") == false);
  CHECK(document.at("latency").at("failures") == std::vector<std::string>{"too slow"});
}
