#include "bundle/recorded_inputs.h"

#include <doctest/doctest.h>

#include <string>

#include "failure_of.h"
#include "hybrid_rt/error.h"

namespace {

using hybrid_rt::Error;
using hybrid_rt::image_inputs;
using hybrid_rt::size_conditions;

std::string with_image(const std::string& image) { return R"({"engines": [], "images": [)" + image + "]}"; }

}  // namespace

TEST_CASE("images are read with their paths, layouts and marks") {
  const auto images = image_inputs(
      with_image(R"({"place": [0, null, "pixels", 3], "layout": "HWC", "shape": [8, 9, 4], "dtype": "uint8"},
                    {"place": [1], "layout": "NHW", "shape": [1, 8, 9], "dtype": "bool", "is_mask": true})"),
      "x.pt");
  REQUIRE(images.has_value());
  REQUIRE(images->size() == 2);
  const auto& [place, layout, shape, dtype, is_mask] = images->front();
  CHECK(place == std::vector<std::optional<std::string>>{"0", std::nullopt, "pixels", "3"});
  CHECK((layout == "HWC" && shape == std::vector<int64_t>{8, 9, 4} && dtype == "uint8" && !is_mask));
  CHECK(images->back().is_mask);
  CHECK(images->front().axis('W') == 1);
}

TEST_CASE("an older file records no images, which is not the same as none") {
  CHECK_FALSE(image_inputs(R"({"engines": []})", "x.pt").has_value());
  CHECK(image_inputs(with_image(""), "x.pt")->empty());
}

TEST_CASE("unusable images are refused") {
  for (const char* image : {
           R"({"layout": "CHW", "shape": [3, 8, 8], "dtype": "float32"})",
           R"({"place": [], "layout": "CHW", "shape": [3, 8, 8], "dtype": "float32"})",
           R"({"place": [0], "layout": "CHW", "shape": [3, 8], "dtype": "float32"})",
           R"({"place": [0], "layout": "CHH", "shape": [3, 8, 8], "dtype": "float32"})",
           R"({"place": [0], "layout": "CDT", "shape": [3, 8, 8], "dtype": "float32"})",
           R"({"place": [0], "layout": "CHW", "shape": [3, 8, -8], "dtype": "float32"})",
           R"({"place": [0], "layout": "CHW", "shape": [3, 8, 1e308], "dtype": "float32"})",
           R"({"place": [1e308], "layout": "CHW", "shape": [3, 8, 8], "dtype": "float32"})",
           R"({"place": [0], "layout": "CHW", "shape": [3, 0, 8], "dtype": "float32"})",
           R"({"place": [0], "layout": "CHW", "shape": [65536, 65536, 65536], "dtype": "float32"})",
           R"({"place": [[0]], "layout": "CHW", "shape": [3, 8, 8], "dtype": "float32"})",
           R"(3)",
       }) {
    CAPTURE(image);
    const Error error = failure_of([&] { image_inputs(with_image(image), "x.pt"); });
    CHECK(contains(error.what(), "hybrid_rt[bundle]: x.pt, manifest, images: expected place, layout, shape and dtype"));
  }
}

TEST_CASE("conditions are read line by line") {
  const std::string manifest =
      R"({"engines": [{}, {"conditions": {"inputs": [["x is even", "0.2: 2 % 0 =="], ["y", "0.3:"]]}}]})";
  CHECK(size_conditions(manifest, 0, "x.pt").inputs.empty());
  CHECK(size_conditions(manifest, 1, "x.pt").inputs == "x is even\t0.2: 2 % 0 ==\ny\t0.3:\n");
  CHECK(size_conditions(manifest, 1, "x.pt").outputs.empty());
  const Error error = failure_of([] { size_conditions(R"({"engines": [{"conditions": {"inputs": [3]}}]})", 0, "x"); });
  CHECK(contains(error.what(), "an engine's conditions: expected pairs of strings for inputs and outputs"));
}
