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

/// A bundle's file, read record by record without unpickling. Everything throws Error(kBundle).
class Archive {
 public:
  /// Opens the file, checks that it is a bundle of a format that this library reads, and that the manifest is whole.
  explicit Archive(const std::string& path);
  ~Archive();

  const std::string& path() const { return path_; }
  /// The file that was opened, for whoever reads more of it.
  const std::shared_ptr<FileBytes>& bytes() const { return bytes_; }
  const Manifest& manifest() const { return manifest_; }
  /// The manifest as JSON: as it was written, or what version 1 wrote in the form of version 2.
  const std::string& manifest_text() const { return manifest_text_; }

  /// The manifest as it is in the file, and the version of its format, as text: what is signed.
  const std::string& stored_manifest() const { return stored_manifest_; }
  const std::string& format_version() const { return format_version_; }
  /// The records of signatures, as they are in the file.
  std::vector<std::string> signatures() const;

  enum class Records {
    kHead,  ///< all but the engines' bytes, which the engines check themselves, and the golden sample
    kAll,
  };
  /// Compares the records with the digests of the manifest.
  void verify(Records which) const;
  /// The bytes of a record that the manifest names, compared with its digest.
  std::string verified(const std::string& record) const;
  /// The bytes of the record with that digest, as a uint8 CPU tensor, compared with it.
  at::Tensor blob(const std::string& sha256) const;

 private:
  /// The bytes of a record that is no longer than `longest`.
  std::string read(const std::string& record, size_t longest) const;
  /// Throws where the file has a record that the manifest does not know, or one twice: readers would take another one.
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
