#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace hybrid_rt {

/// An input of the detector that is an image, or a mask with the same height and width, as recorded by convert().
struct ImageInput {
  /// Path to it in forward's arguments: positions and keys as text; nullopt stands for every entry of a list.
  std::vector<std::optional<std::string>> place;
  std::string layout;          ///< letters out of N, C, T, D, H and W, including H and W
  std::vector<int64_t> shape;  ///< shape of the example, one size per letter
  std::string dtype;
  bool is_mask = false;

  /// Returns the position of a letter in the layout, which must contain it.
  size_t axis(char letter) const { return layout.find(letter); }
};

/// Returns the images that a manifest records; nullopt if an older hybrid_rt wrote the manifest. Throws Error(kBundle).
/// \param manifest as JSON
/// \param path path of the file, for messages
std::optional<std::vector<ImageInput>> image_inputs(const std::string& manifest, const std::string& path);

/// Conditions on the sizes of an engine's tensors beyond their ranges, in the form that `Conditions` reads.
struct SizeConditions {
  std::string inputs;
  std::string outputs;  ///< on outputs that later segments take, depending on input sizes
};

/// Returns the conditions of the engine at a position in the manifest; empty if it has none. Throws Error(kBundle).
SizeConditions size_conditions(const std::string& manifest, size_t engine, const std::string& path);

}  // namespace hybrid_rt
