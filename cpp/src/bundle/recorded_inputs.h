#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace hybrid_rt {

/// An input of the detector that is an image, or a mask with the height and width of the images, as convert() found it.
struct ImageInput {
  /// The way to it in forward's arguments: positions and keys, as text; nullopt: every entry of a list.
  std::vector<std::optional<std::string>> place;
  std::string layout;          ///< letters out of N, C, T, D, H and W; H and W are among them
  std::vector<int64_t> shape;  ///< the example's, a size per letter
  std::string dtype;
  bool is_mask = false;

  /// The position of a letter in the layout, which has it.
  size_t axis(char letter) const { return layout.find(letter); }
};

/// Returns the images that a manifest records; nullopt if an older hybrid_rt wrote it. Throws Error(kBundle).
/// \param manifest  as JSON
/// \param path      the file, for messages
std::optional<std::vector<ImageInput>> image_inputs(const std::string& manifest, const std::string& path);

/// What the sizes of an engine's tensors have to be beyond their ranges, in the form that `Conditions` reads.
struct SizeConditions {
  std::string inputs;
  std::string outputs;  ///< those that a later segment of the engine takes; the size of an input decides on them
};

/// Returns the conditions of the manifest's engine at a position; empty ones if it has none. Throws Error(kBundle).
SizeConditions size_conditions(const std::string& manifest, size_t engine, const std::string& path);

}  // namespace hybrid_rt
