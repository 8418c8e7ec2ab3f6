#pragma once

#include <ATen/core/Tensor.h>

#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "bundle/archive.h"
#include "hybrid_rt/specs.h"

namespace hybrid_rt {

/// The bytes of an engine's variants, in memory or in the file that they came from. Thread-safe.
class BlobTable {
 public:
  /// Creates a table in memory. `bytes` are contiguous one-dimensional uint8 CPU tensors. Throws Error(kBundle).
  BlobTable(std::string engine, std::vector<TableEntry> entries, std::vector<at::Tensor> bytes);
  /// Creates a table that reads from a file.
  BlobTable(std::string engine, std::vector<TableEntry> entries, std::shared_ptr<const Archive> file);

  /// Throws Error(kBundle) unless the pieces of each blob are within the table and add up to its size.
  void check(const std::vector<ArtifactSpec>& specs) const;

  /// Returns an artifact's bytes in the order of spec.blobs, after comparing each with its digest. Throws
  /// Error(kBundle).
  std::vector<at::Tensor> blobs_of(const ArtifactSpec& spec) const;

  /// Returns all entries, and reads those that are not in memory. Throws Error(kBundle).
  std::vector<at::Tensor> all() const;

  /// Releases the bytes, which are in the file too. They are read from it from now on.
  void release(std::shared_ptr<const Archive> file);

 private:
  at::Tensor entry(size_t index) const;
  at::Tensor assembled(const BlobSpec& blob) const;

  std::string engine_;
  std::vector<TableEntry> entries_;
  mutable std::mutex mutex_;       // guards bytes_, file_
  std::vector<at::Tensor> bytes_;  // undefined if the bytes are in the file
  std::shared_ptr<const Archive> file_;
};

}  // namespace hybrid_rt
