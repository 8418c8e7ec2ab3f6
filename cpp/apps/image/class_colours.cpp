#include "class_colours.h"

#include <algorithm>
#include <cmath>
#include <cstddef>

namespace hybrid_rt::apps {
namespace {

struct Shade {
  double saturation, value;
};

// Hues in steps of the golden ratio become similar again after a Fibonacci number of labels (13, 21, 34, ...). No
// Fibonacci number below 144 is a multiple of four, so labels with similar hues have different shades.
constexpr std::array<Shade, 4> kShades = {{{0.9, 1.0}, {0.95, 0.6}, {0.45, 1.0}, {0.7, 0.8}}};

/// Relative luminance in 0..1: https://www.w3.org/TR/WCAG21/#dfn-relative-luminance
double luminance(const Colour& colour) {
  const auto linear = [](std::uint8_t level) {
    const double part = level / 255.0;
    return part <= 0.04045 ? part / 12.92 : std::pow((part + 0.055) / 1.055, 2.4);
  };
  return 0.2126 * linear(colour[0]) + 0.7152 * linear(colour[1]) + 0.0722 * linear(colour[2]);
}

}  // namespace

Colour label_colour(std::int64_t label) {
  // Steps of the golden ratio distribute any number of hues evenly around the circle.
  constexpr double kGoldenRatio = 0.618033988749895;
  const double turns = kGoldenRatio * static_cast<double>(label);
  const double sextant = (turns - std::floor(turns)) * 6;
  const auto [saturation, value] = kShades[static_cast<std::size_t>(label & 3)];
  const auto channel = [sextant, saturation = saturation, value = value](double shift) {
    const double distance = std::fmod(sextant + shift, 6);
    const double level = value * (1 - saturation * std::clamp(std::min(distance, 4 - distance), 0.0, 1.0));
    return static_cast<std::uint8_t>(std::floor(255 * level + 0.5));
  };
  return {channel(5), channel(3), channel(1)};
}

Colour text_colour(const Colour& background) {
  const double light = luminance(background) + 0.05;  // the contrast to black is light / 0.05, to white 1.05 / light
  return light * light >= 0.05 * 1.05 ? Colour{0, 0, 0} : Colour{255, 255, 255};
}

}  // namespace hybrid_rt::apps
