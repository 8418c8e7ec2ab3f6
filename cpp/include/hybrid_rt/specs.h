#pragma once

#include <c10/core/ScalarType.h>

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

namespace hybrid_rt {

/// A tensor at the edge of a segment. Each dimension d holds min[d] <= size <= max[d]; opt[d] is what the compiler
/// was told to expect most. max[d] == kUnbounded: no upper bound.
struct TensorSpec {
  static constexpr int64_t kUnbounded = -1;

  std::string name;
  c10::ScalarType dtype = c10::ScalarType::Float;
  std::vector<int64_t> min;
  std::vector<int64_t> opt;
  std::vector<int64_t> max;
};

/// `size` bytes from `offset` on of an entry of the engine's table of bytes.
struct BlobPiece {
  int64_t index = 0;
  int64_t offset = 0;
  int64_t size = 0;
};

/// One byte string of an artifact: its length, its SHA-256 (hexadecimal), and the pieces that it is put together of.
/// Most are one whole entry of the table; weights that several variants have are stored once.
struct BlobSpec {
  std::string name;
  int64_t size = 0;
  std::string sha256;
  std::vector<BlobPiece> pieces;
};

/// An entry of the table.
struct TableEntry {
  int64_t size = 0;
  std::string sha256;

  /// Throws Error(kBundle) that names the field that is missing or of the wrong type.
  static std::vector<TableEntry> list_from_json(std::string_view json);
};

/// All that is known of an artifact without opening it: the contract of its inputs and outputs, and what it needs
/// of the machine that will run it.
struct ArtifactSpec {
  std::string backend;
  std::string precision;  ///< "fp32", "bf16", "fp16", "int8"
  std::string device;     ///< the device type it was compiled for: "cpu", "cuda"
  std::vector<TensorSpec> inputs;
  std::vector<TensorSpec> outputs;
  std::vector<BlobSpec> blobs;
  /// Requirements for the machine: see unmet() for "version", "cpu" and "memory"; others are the backend's own.
  std::map<std::string, std::string> requirements;
  std::map<std::string, std::string> versions;  ///< what it was made with, e.g. {"openvino": "2026.4.1"}

  /// Throws Error(kBundle) that names the field that is missing or of the wrong type.
  static std::vector<ArtifactSpec> list_from_json(std::string_view json);

  const BlobSpec& blob(std::string_view name) const;
};

/// "1..8x3x32..1344x32..1344 float32": for messages.
std::string to_string(const TensorSpec& spec);

}  // namespace hybrid_rt
