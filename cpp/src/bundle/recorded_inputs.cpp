#include "bundle/recorded_inputs.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <utility>

#include "common/damaged.h"
#include "common/json_text.h"

namespace hybrid_rt {
namespace {

using nlohmann::json;

/// More elements than any image has, so that an altered file can't claim all of the memory.
constexpr int64_t kMostElements = int64_t{1} << 30;

std::optional<std::string> step_from(const json& step) {
  if (step.is_null()) return std::nullopt;
  return step.is_string() ? step.get<std::string>() : std::to_string(integers_in(step).get<int64_t>());
}

ImageInput image_from(const json& entry) {
  ImageInput image{.place = {},
                   .layout = entry.at("layout").get<std::string>(),
                   .shape = integers_in(entry.at("shape")).get<std::vector<int64_t>>(),
                   .dtype = entry.at("dtype").get<std::string>(),
                   .is_mask = entry.value("is_mask", false)};
  for (const json& step : entry.at("place")) image.place.push_back(step_from(step));
  return image;
}

bool is_usable(const ImageInput& image) {
  const std::string& layout = image.layout;
  const auto is_once = [&](char letter) { return std::count(layout.begin(), layout.end(), letter) == 1; };
  if (image.place.empty() || image.shape.size() != layout.size() || !is_once('H') || !is_once('W')) return false;
  int64_t elements = 1;
  for (const int64_t size : image.shape) {
    if (size < 1 || size > kMostElements / elements) return false;
    elements *= size;
  }
  return true;
}

std::string lines_from(const json& conditions, const char* which) {
  std::string text;
  const auto found = conditions.find(which);
  if (found == conditions.end()) return text;
  for (const json& condition : *found) {
    text += condition.at(0).get<std::string>() + "\t" + condition.at(1).get<std::string>() + "\n";
  }
  return text;
}

}  // namespace

std::optional<std::vector<ImageInput>> image_inputs(const std::string& manifest, const std::string& path) {
  const json parsed = parse_json(manifest);
  const auto entries = parsed.find("images");
  if (entries == parsed.end()) return std::nullopt;
  const std::string expected = "place, layout, shape and dtype of each one as docs/format.md describes them";
  std::vector<ImageInput> images;
  try {
    for (const json& entry : *entries) {
      images.push_back(image_from(entry));
      if (!is_usable(images.back())) throw damaged_manifest(path, "images", expected, shown(entry));
    }
  } catch (const json::exception& error) {
    throw damaged_manifest(path, "images", expected, error.what());
  }
  return images;
}

SizeConditions size_conditions(const std::string& manifest, size_t engine, const std::string& path) {
  const json parsed = parse_json(manifest);
  try {
    const json& entry = parsed.at("engines").at(engine);
    const auto found = entry.find("conditions");
    if (found == entry.end()) return {};
    return {lines_from(*found, "inputs"), lines_from(*found, "outputs")};
  } catch (const json::exception& error) {
    throw damaged_manifest(path, "an engine's conditions", "pairs of strings for inputs and outputs", error.what());
  }
}

}  // namespace hybrid_rt
