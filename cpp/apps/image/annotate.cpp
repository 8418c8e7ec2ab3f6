#include "annotate.h"

#include <algorithm>
#include <cctype>
#include <cmath>
#include <cstddef>
#include <string>
#include <vector>

#include "ascii.h"

#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wunused-function"
#include <stb/stb_easy_font.h>
#pragma GCC diagnostic pop

namespace hybrid_rt::apps {
namespace {

constexpr int kMaxScale = 6;
constexpr int kOutside = kMaxScale + 2;  // pixels; more than the width of any line
constexpr int kTextHeight = 13;          // stb_easy_font's glyphs with two pixels above and below
constexpr int kPaddingAbove = 2;
constexpr int kPaddingBeside = 3;
constexpr std::size_t kMaxName = 40;  // characters
constexpr const char* kCut = "...";

/// Half-open: x2 and y2 are outside.
struct Rectangle {
  int x1, y1, x2, y2;
};

void fill(Image& image, Rectangle area, const Colour& colour) {
  area.x1 = std::max(area.x1, 0);
  area.y1 = std::max(area.y1, 0);
  area.x2 = std::min(area.x2, image.width);
  area.y2 = std::min(area.y2, image.height);
  for (int y = area.y1; y < area.y2; ++y) {
    for (int x = area.x1; x < area.x2; ++x) {
      const std::size_t offset = (static_cast<std::size_t>(y) * image.width + x) * 3;
      std::copy(colour.begin(), colour.end(), image.rgb.begin() + static_cast<std::ptrdiff_t>(offset));
    }
  }
}

void outline(Image& image, const Rectangle& box, const Colour& colour, int line) {
  fill(image, {box.x1, box.y1, box.x2, box.y1 + line}, colour);
  fill(image, {box.x1, box.y2 - line, box.x2, box.y2}, colour);
  fill(image, {box.x1, box.y1, box.x1 + line, box.y2}, colour);
  fill(image, {box.x2 - line, box.y1, box.x2, box.y2}, colour);
}

/// Returns the pixel, clamped to just outside the image, because casting a float that an int can't hold is undefined.
int to_pixel(float coordinate, int size) {
  return static_cast<int>(
      std::lround(std::clamp(coordinate, static_cast<float>(-kOutside), static_cast<float>(size + kOutside))));
}

int width_of(std::string text) { return stb_easy_font_width(text.data()); }

/// Returns a caption that the font can write: the name, shortened with "..." so that name and score fit into `width`.
/// The score is never shortened. A name without any readable character is replaced by the label's number.
std::string caption(const Annotation& annotation, int width) {
  if (annotation.name.empty() && annotation.score.empty()) return "";
  std::string name = to_ascii(annotation.name);
  const auto is_readable = [](unsigned char c) { return std::isalnum(c) != 0; };
  if (std::none_of(name.begin(), name.end(), is_readable)) name = std::to_string(annotation.label);
  const std::string score = to_ascii(annotation.score);
  const std::string behind = score.empty() ? "" : " " + score;
  if (name.size() <= kMaxName && width_of(name + behind) <= width) return name + behind;
  name.resize(std::min(name.size(), kMaxName));
  while (!name.empty() && width_of(name + kCut + behind) > width) name.pop_back();
  return name + kCut + behind;
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

void draw_caption(Image& image, const Rectangle& box, const Annotation& annotation, const Colour& background,
                  int scale) {
  std::string text = caption(annotation, image.width / scale - 2 * kPaddingBeside);
  if (text.empty()) return;
  const int width = (stb_easy_font_width(text.data()) + 2 * kPaddingBeside) * scale;
  const int height = kTextHeight * scale;
  // Above the box, or inside it if there is no room above; within the image if it fits at all.
  const int x = std::max(0, std::min(box.x1, image.width - width));
  const int y = std::max(0, std::min(box.y1 >= height ? box.y1 - height : box.y1, image.height - height));
  fill(image, {x, y, x + width, y + height}, background);

  const Colour ink = text_colour(background);
  const int left = x + kPaddingBeside * scale;
  const int top = y + kPaddingAbove * scale;
  for (const Rectangle& stroke : glyph_strokes(text)) {
    fill(image, {left + stroke.x1 * scale, top + stroke.y1 * scale, left + stroke.x2 * scale, top + stroke.y2 * scale},
         ink);
  }
}

}  // namespace

void annotate(Image& image, std::span<const Annotation> annotations) {
  struct Drawn {
    Rectangle box;
    const Annotation* annotation;
  };
  std::vector<Drawn> drawn;
  for (const Annotation& annotation : annotations) {
    const auto& [x1, y1, x2, y2] = annotation.box;
    if (std::isnan(x1) || std::isnan(y1) || std::isnan(x2) || std::isnan(y2)) continue;
    drawn.push_back(
        {{to_pixel(x1, image.width), to_pixel(y1, image.height), to_pixel(x2, image.width), to_pixel(y2, image.height)},
         &annotation});
  }
  std::reverse(drawn.begin(), drawn.end());
  const int scale = std::clamp(std::min(image.width, image.height) / 360, 1, kMaxScale);
  // All outlines come first, so that none crosses a caption.
  for (const auto& [box, annotation] : drawn) outline(image, box, label_colour(annotation->label), scale + 1);
  for (const auto& [box, annotation] : drawn)
    draw_caption(image, box, *annotation, label_colour(annotation->label), scale);
}

}  // namespace hybrid_rt::apps
