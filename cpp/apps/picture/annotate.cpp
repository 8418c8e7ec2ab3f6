#include "annotate.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <vector>

#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wunused-function"
#include <stb/stb_easy_font.h>
#pragma GCC diagnostic pop

namespace hybrid_rt::apps {
namespace {

constexpr int kLineWidth = 2;
constexpr int kTextHeight = 11;  // of stb_easy_font's glyphs with a pixel above and below
constexpr std::size_t kMaxTextLength = 64;

/// Half open: x2 and y2 are outside.
struct Rectangle {
  int x1, y1, x2, y2;
};

void fill(Picture& picture, Rectangle area, const Colour& colour) {
  area.x1 = std::max(area.x1, 0);
  area.y1 = std::max(area.y1, 0);
  area.x2 = std::min(area.x2, picture.width);
  area.y2 = std::min(area.y2, picture.height);
  for (int y = area.y1; y < area.y2; ++y) {
    for (int x = area.x1; x < area.x2; ++x) {
      const std::size_t offset = (static_cast<std::size_t>(y) * picture.width + x) * 3;
      std::copy(colour.begin(), colour.end(), picture.rgb.begin() + static_cast<std::ptrdiff_t>(offset));
    }
  }
}

void outline(Picture& picture, const Rectangle& box, const Colour& colour) {
  fill(picture, {box.x1, box.y1, box.x2, box.y1 + kLineWidth}, colour);
  fill(picture, {box.x1, box.y2 - kLineWidth, box.x2, box.y2}, colour);
  fill(picture, {box.x1, box.y1, box.x1 + kLineWidth, box.y2}, colour);
  fill(picture, {box.x2 - kLineWidth, box.y1, box.x2, box.y2}, colour);
}

/// The pixel, at most a line's width outside the picture: casting what an int can't hold is undefined.
int to_pixel(float coordinate, int size) {
  return static_cast<int>(
      std::lround(std::clamp(coordinate, static_cast<float>(-kLineWidth), static_cast<float>(size + kLineWidth))));
}

std::string printable(const std::string& text) {
  std::string result = text.substr(0, kMaxTextLength);
  // The font's tables have no entries for other characters and stb_easy_font does not check.
  std::replace_if(result.begin(), result.end(), [](char c) { return c < ' ' || c > '~'; }, '?');
  return result;
}

std::vector<Rectangle> glyph_strokes(std::string& text) {
  struct Vertex {
    float x, y, z;
    unsigned char colour[4];
  };
  constexpr std::size_t kVerticesPerStroke = 4;
  constexpr std::size_t kStrokesPerCharacter = 16;  // the busiest glyph has 11
  std::vector<Vertex> vertices(text.size() * kStrokesPerCharacter * kVerticesPerStroke);
  const int count = stb_easy_font_print(0, 0, text.data(), nullptr, vertices.data(),
                                        static_cast<int>(vertices.size() * sizeof(Vertex)));
  std::vector<Rectangle> strokes;
  for (std::size_t i = 0; i < static_cast<std::size_t>(count); ++i) {
    const Vertex& first = vertices[i * kVerticesPerStroke];
    const Vertex& opposite = vertices[i * kVerticesPerStroke + 2];
    strokes.push_back({static_cast<int>(first.x), static_cast<int>(first.y), static_cast<int>(opposite.x),
                       static_cast<int>(opposite.y)});
  }
  return strokes;
}

void draw_text(Picture& picture, const Rectangle& box, const std::string& unsafe_text, const Colour& background) {
  std::string text = printable(unsafe_text);
  if (text.empty()) return;
  const int scale = std::clamp(std::min(picture.width, picture.height) / 400, 1, 4);
  const int width = (stb_easy_font_width(text.data()) + 2) * scale;
  const int height = kTextHeight * scale;
  // Above the box, or inside where there is no room above; never beyond the right edge if it fits at all.
  const int x = std::max(0, std::min(box.x1, picture.width - width));
  const int y = box.y1 >= height ? box.y1 - height : std::max(0, box.y1);
  fill(picture, {x, y, x + width, y + height}, background);

  const double brightness = 0.299 * background[0] + 0.587 * background[1] + 0.114 * background[2];
  const Colour ink = brightness > 128 ? Colour{0, 0, 0} : Colour{255, 255, 255};
  const int left = x + scale;
  const int top = y + scale;
  for (const Rectangle& stroke : glyph_strokes(text)) {
    fill(picture,
         {left + stroke.x1 * scale, top + stroke.y1 * scale, left + stroke.x2 * scale, top + stroke.y2 * scale}, ink);
  }
}

}  // namespace

Colour label_colour(std::int64_t label) {
  // Steps of the golden ratio spread any number of hues evenly round the circle.
  constexpr double kGoldenRatio = 0.618033988749895;
  const double turns = kGoldenRatio * static_cast<double>(label);
  const double sextant = (turns - std::floor(turns)) * 6;
  const auto channel = [sextant](double shift) {
    const double distance = std::fmod(sextant + shift, 6);
    const double level = 1 - 0.85 * std::clamp(std::min(distance, 4 - distance), 0.0, 1.0);
    return static_cast<std::uint8_t>(std::lround(255 * level));
  };
  return {channel(5), channel(3), channel(1)};
}

void annotate(Picture& picture, std::span<const Annotation> annotations) {
  for (auto annotation = annotations.rbegin(); annotation != annotations.rend(); ++annotation) {
    const auto& [x1, y1, x2, y2] = annotation->box;
    if (std::isnan(x1) || std::isnan(y1) || std::isnan(x2) || std::isnan(y2)) continue;
    const Rectangle box{to_pixel(x1, picture.width), to_pixel(y1, picture.height), to_pixel(x2, picture.width),
                        to_pixel(y2, picture.height)};
    const Colour colour = label_colour(annotation->label);
    outline(picture, box, colour);
    draw_text(picture, box, annotation->text, colour);
  }
}

}  // namespace hybrid_rt::apps
