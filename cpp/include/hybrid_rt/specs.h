#pragma once

#include <c10/core/ScalarType.h>

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

namespace hybrid_rt {

/// An input or output tensor of an engine. Each dimension d satisfies min[d] <= size <= max[d]; opt[d] is the size that
/// the compiler optimizes for. max[d] == kUnbounded: no upper bound.
struct TensorSpec {
  static constexpr int64_t kUnbounded = -1;  ///< as a maximum: no upper bound

  std::string name;                                ///< name of the tensor
  c10::ScalarType dtype = c10::ScalarType::Float;  ///< data type
  std::vector<int64_t> min;                        ///< smallest size of each dimension
  std::vector<int64_t> opt;                        ///< expected size of each dimension
  std::vector<int64_t> max;                        ///< largest size of each dimension, or kUnbounded
};

/// A range of bytes in an entry of the engine's blob table.
struct BlobPiece {
  int64_t index = 0;   ///< index of the entry
  int64_t offset = 0;  ///< first byte
  int64_t size = 0;    ///< number of bytes
};

/// One byte string of an artifact. Most consist of one whole entry of the blob table; weights that several variants
/// share are an entry of their own.
struct BlobSpec {
  std::string name;               ///< name of the byte string
  int64_t size = 0;               ///< length in bytes
  std::string sha256;             ///< SHA-256 in hexadecimal digits
  std::vector<BlobPiece> pieces;  ///< the pieces that it consists of, in order
};

/// An entry of the blob table.
struct TableEntry {
  int64_t size = 0;    ///< length in bytes
  std::string sha256;  ///< SHA-256 in hexadecimal digits

  /// Throws Error(kBundle) that names the field that is missing or of the wrong type.
  static std::vector<TableEntry> list_from_json(std::string_view json);
};

/// Properties of an artifact that are known without opening it: the contract of its inputs and outputs, and its
/// requirements for the machine that runs it.
struct ArtifactSpec {
  std::string backend;              ///< name of the backend
  std::string precision;            ///< precision: "fp32", "bf16", "fp16", "int8"
  std::string device;               ///< kind of device that it was compiled for: "cpu", "cuda"
  std::vector<TensorSpec> inputs;   ///< the tensors that it takes, in order
  std::vector<TensorSpec> outputs;  ///< the tensors that it returns, in order
  std::vector<BlobSpec> blobs;      ///< its byte strings
  /// Requirements for the machine: see unmet() for "version", "cpu" and "memory"; others are the backend's own.
  std::map<std::string, std::string> requirements;
  std::map<std::string, std::string> versions;  ///< versions of the compiler's packages: {"openvino": "2026.4.1"}

  /// Throws Error(kBundle) that names the field that is missing or of the wrong type.
  static std::vector<ArtifactSpec> list_from_json(std::string_view json);

  const BlobSpec& blob(std::string_view name) const;  ///< Throws Error(kBundle) if there is none of that name.
};

/// Returns a spec for messages, e.g. "1..8x3x32..1344x32..1344 float32".
std::string to_string(const TensorSpec& spec);

}  // namespace hybrid_rt
