#include "class_colours.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <utility>

namespace {

using hybrid_rt::apps::Colour;
using hybrid_rt::apps::label_colour;
using hybrid_rt::apps::text_colour;

double luminance(const Colour& colour) {
  const auto linear = [](double level) {
    return level <= 0.04045 ? level / 12.92 : std::pow((level + 0.055) / 1.055, 2.4);
  };
  return 0.2126 * linear(colour[0] / 255.0) + 0.7152 * linear(colour[1] / 255.0) + 0.0722 * linear(colour[2] / 255.0);
}

double contrast(const Colour& a, const Colour& b) {
  const auto [darker, lighter] = std::minmax({luminance(a), luminance(b)});  // by value: these are temporaries
  return (lighter + 0.05) / (darker + 0.05);
}

}  // namespace

TEST_CASE("each label has the same colour as in Python and on the page") {
  const std::pair<std::int64_t, Colour> colours[] = {
      {-7, {14, 8, 153}},  {-1, {61, 204, 103}}, {0, {255, 25, 25}}, {1, {8, 50, 153}},     {2, {207, 255, 140}},
      {3, {204, 61, 186}}, {4, {25, 255, 217}},  {13, {153, 38, 8}}, {90, {140, 170, 255}}, {1000003, {204, 61, 196}},
  };
  for (const auto& [label, colour] : colours) {
    CAPTURE(label);
    CHECK(label_colour(label) == colour);
  }
}

TEST_CASE("labels next to each other have clearly different colours") {
  for (std::int64_t label = -20; label < 200; ++label) {
    const Colour a = label_colour(label);
    const Colour b = label_colour(label + 1);
    CHECK(std::abs(a[0] - b[0]) + std::abs(a[1] - b[1]) + std::abs(a[2] - b[2]) > 200);
  }
}

TEST_CASE("text can be read on every colour") {
  for (std::int64_t label = -1000; label < 1000; ++label) {
    const Colour background = label_colour(label);
    CAPTURE(label);
    CHECK(contrast(background, text_colour(background)) >= 4.5);
  }
  CHECK(text_colour({255, 255, 255}) == Colour{0, 0, 0});
  CHECK(text_colour({0, 0, 0}) == Colour{255, 255, 255});
}
