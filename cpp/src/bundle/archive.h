#pragma once

#include <ATen/core/Tensor.h>

#include <memory>
#include <string>
#include <vector>

#include "bundle/file_bytes.h"
#include "bundle/manifest.h"

namespace caffe2::serialize {
class PyTorchStreamReader;
}

namespace hybrid_rt {

/// Reads a bundle's file record by record, without unpickling. Every method throws Error(kBundle).
class Archive {
 public:
  /// Opens the file, and checks that it is a bundle in a format that this library reads, with an intact manifest.
  explicit Archive(const std::string& path);
  ~Archive();

  const std::string& path() const { return path_; }
  /// Returns the opened file, for reading more of it.
  const std::shared_ptr<FileBytes>& bytes() const { return bytes_; }
  const Manifest& manifest() const { return manifest_; }
  /// Returns the manifest as JSON. A manifest of version 1 is converted to version 2.
  const std::string& manifest_text() const { return manifest_text_; }

  /// Returns the manifest exactly as in the file, and the version of its format as text. Signatures cover both.
  const std::string& stored_manifest() const { return stored_manifest_; }
  const std::string& format_version() const { return format_version_; }
  /// Returns the records of signatures as they are in the file.
  std::vector<std::string> signatures() const;

  enum class Records {
    kHead,  ///< everything except the engines' bytes, which the engines check, and the golden sample
    kAll,
  };
  /// Compares records with the digests in the manifest.
  void verify(Records which) const;
  /// Returns the bytes of a record that the manifest names, after comparing them with its digest.
  std::string verified(const std::string& record) const;
  /// Returns the bytes of the record with that digest as a uint8 CPU tensor, after comparing them with it.
  at::Tensor blob(const std::string& sha256) const;

 private:
  /// Returns the bytes of a record of at most `longest` bytes.
  std::string read(const std::string& record, size_t longest) const;
  /// Throws if the file has a record that the manifest does not list, or two of one name: other readers would use the
  /// other one.
  void check_names() const;
  size_t longest(bool is_golden) const;

  std::string path_;
  std::shared_ptr<FileBytes> bytes_;
  std::unique_ptr<caffe2::serialize::PyTorchStreamReader> reader_;
  std::string format_version_;
  std::string stored_manifest_;
  std::string manifest_text_;
  Manifest manifest_;
};

}  // namespace hybrid_rt
