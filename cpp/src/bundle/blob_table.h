#pragma once

#include <ATen/core/Tensor.h>

#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "bundle/archive.h"
#include "hybrid_rt/specs.h"

namespace hybrid_rt {

/// The bytes of an engine's variants: in memory, or in the file that they came from. Thread-safe.
class BlobTable {
 public:
  /// In memory. `bytes`: contiguous one-dimensional uint8 CPU tensors. Throws Error(kBundle).
  BlobTable(std::string engine, std::vector<TableEntry> entries, std::vector<at::Tensor> bytes);
  /// In a file.
  BlobTable(std::string engine, std::vector<TableEntry> entries, std::shared_ptr<const Archive> file);

  /// Throws Error(kBundle) unless every blob's pieces are inside of the table and add up to its size.
  void check(const std::vector<ArtifactSpec>& specs) const;

  /// An artifact's bytes in the order of spec.blobs, each compared with its digest. Throws Error(kBundle).
  std::vector<at::Tensor> blobs_of(const ArtifactSpec& spec) const;

  /// All entries; reads those that were let go. Throws Error(kBundle).
  std::vector<at::Tensor> all() const;

  /// From here on the bytes are read from the file when they are needed: it holds them too, and memory only once.
  void let_go(std::shared_ptr<const Archive> file);

 private:
  at::Tensor entry(size_t index) const;
  at::Tensor assembled(const BlobSpec& blob) const;

  std::string engine_;
  std::vector<TableEntry> entries_;
  mutable std::mutex mutex_;       // guards bytes_, file_
  std::vector<at::Tensor> bytes_;  // undefined: in the file
  std::shared_ptr<const Archive> file_;
};

}  // namespace hybrid_rt
