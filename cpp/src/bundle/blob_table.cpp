#include "bundle/blob_table.h"

#include <ATen/ops/empty.h>

#include <cstring>
#include <limits>
#include <utility>

#include "common/digest.h"
#include "common/dtypes.h"
#include "hybrid_rt/error.h"
#include "hybrid_rt/plugin/malformed.h"

namespace hybrid_rt {
namespace {

/// Limit of a variant's bytes beyond those of the table. A piece may be used several times, as for tied weights, but a
/// small file must not claim a lot of memory.
constexpr int64_t kMostRepeated = int64_t{256} << 20;

/// Returns the sum, or the largest int64 if it overflows.
int64_t saturated(int64_t a, int64_t b) {
  int64_t sum = 0;
  return __builtin_add_overflow(a, b, &sum) ? std::numeric_limits<int64_t>::max() : sum;
}

}  // namespace

BlobTable::BlobTable(std::string engine, std::vector<TableEntry> entries, std::vector<at::Tensor> bytes)
    : engine_(std::move(engine)), entries_(std::move(entries)), bytes_(std::move(bytes)) {
  const std::string subject = "engine '" + engine_ + "', blobs";
  if (bytes_.size() != entries_.size()) {
    throw malformed("engine", subject, std::to_string(entries_.size()), std::to_string(bytes_.size()));
  }
  for (size_t i = 0; i < bytes_.size(); ++i) {
    const at::Tensor& blob = bytes_[i];
    if (blob.scalar_type() != at::kByte || !blob.device().is_cpu() || blob.dim() != 1 || !blob.is_contiguous()) {
      throw malformed("engine", subject, "contiguous one-dimensional uint8 CPU tensors",
                      "a " + std::to_string(blob.dim()) + "-dimensional " + name_of(blob.scalar_type()) +
                          " tensor on " + blob.device().str());
    }
    if (blob.numel() != entries_[i].size) {
      throw malformed("engine", subject + ", entry " + std::to_string(i), std::to_string(entries_[i].size) + " bytes",
                      std::to_string(blob.numel()));
    }
  }
}

BlobTable::BlobTable(std::string engine, std::vector<TableEntry> entries, std::shared_ptr<const Archive> file)
    : engine_(std::move(engine)), entries_(std::move(entries)), bytes_(entries_.size()), file_(std::move(file)) {}

void BlobTable::check(const std::vector<ArtifactSpec>& specs) const {
  int64_t most = kMostRepeated;
  for (const TableEntry& entry : entries_) most = saturated(most, entry.size);
  for (const ArtifactSpec& spec : specs) {
    int64_t whole = 0;
    for (const BlobSpec& blob : spec.blobs) {
      const std::string subject = "engine '" + engine_ + "', blob '" + blob.name + "' of " + spec.backend;
      int64_t size = 0;
      for (const BlobPiece& piece : blob.pieces) {
        if (piece.index < 0 || piece.index >= static_cast<int64_t>(entries_.size())) {
          throw malformed("engine", subject, "an index below " + std::to_string(entries_.size()),
                          std::to_string(piece.index));
        }
        const int64_t length = entries_[static_cast<size_t>(piece.index)].size;
        if (piece.offset < 0 || piece.size < 0 || piece.offset > length || piece.size > length - piece.offset) {
          throw malformed("engine", subject, "a piece within " + std::to_string(length) + " bytes",
                          std::to_string(piece.size) + " from " + std::to_string(piece.offset) + " on");
        }
        size = saturated(size, piece.size);
      }
      if (size != blob.size) {
        throw malformed("engine", subject, std::to_string(blob.size) + " bytes", std::to_string(size));
      }
      whole = saturated(whole, size);
      if (whole > most) {
        throw malformed("engine", subject, "at most " + std::to_string(most) + " bytes of all blobs",
                        std::to_string(whole));
      }
    }
  }
}

at::Tensor BlobTable::entry(size_t index) const {
  std::shared_ptr<const Archive> file;
  {
    const std::lock_guard lock(mutex_);
    if (bytes_[index].defined()) return bytes_[index];
    file = file_;
  }
  at::Tensor bytes = file->blob(entries_[index].sha256);
  if (bytes.numel() != entries_[index].size) {
    throw malformed("engine", "engine '" + engine_ + "', entry " + std::to_string(index) + " of its table",
                    std::to_string(entries_[index].size) + " bytes", std::to_string(bytes.numel()));
  }
  return bytes;
}

at::Tensor BlobTable::assembled(const BlobSpec& blob) const {
  if (blob.pieces.size() == 1) {
    const BlobPiece& piece = blob.pieces.front();
    at::Tensor bytes = entry(static_cast<size_t>(piece.index));
    if (piece.offset == 0 && piece.size == bytes.numel()) return bytes;
  }
  at::Tensor whole = at::empty({blob.size}, at::kByte);
  int64_t position = 0;
  size_t last = entries_.size();
  at::Tensor bytes;
  for (const BlobPiece& piece : blob.pieces) {
    const auto index = static_cast<size_t>(piece.index);
    if (index != last) bytes = entry(index);
    last = index;
    if (piece.size > 0) {
      std::memcpy(whole.mutable_data_ptr<uint8_t>() + position, bytes.const_data_ptr<uint8_t>() + piece.offset,
                  static_cast<size_t>(piece.size));
    }
    position += piece.size;
  }
  return whole;
}

std::vector<at::Tensor> BlobTable::blobs_of(const ArtifactSpec& spec) const {
  std::vector<at::Tensor> found;
  for (const BlobSpec& blob : spec.blobs) {
    at::Tensor bytes = assembled(blob);
    const std::string got = sha256(bytes.const_data_ptr<uint8_t>(), static_cast<size_t>(bytes.numel()));
    if (got != blob.sha256) {
      throw Error(ErrorKind::kBundle, spec.backend, "engine '" + engine_ + "', blob '" + blob.name + "'",
                  "the SHA-256 " + blob.sha256, got, "The file was altered or damaged: copy or convert it again.");
    }
    found.push_back(std::move(bytes));
  }
  return found;
}

std::vector<at::Tensor> BlobTable::all() const {
  std::vector<at::Tensor> found;
  for (size_t i = 0; i < entries_.size(); ++i) found.push_back(entry(i));
  return found;
}

void BlobTable::release(std::shared_ptr<const Archive> file) {
  std::vector<at::Tensor> released(entries_.size());
  const std::lock_guard lock(mutex_);
  file_ = std::move(file);
  bytes_.swap(released);
}

}  // namespace hybrid_rt
