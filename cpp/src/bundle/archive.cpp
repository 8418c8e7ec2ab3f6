#include "bundle/archive.h"

#include <ATen/ops/from_blob.h>
#include <caffe2/serialize/inline_container.h>

#include <set>
#include <string_view>
#include <utility>

#include "common/damaged.h"
#include "common/digest.h"
#include "hybrid_rt/error.h"

namespace hybrid_rt {
namespace {

constexpr char kVersionRecord[] = "extra/hybrid_rt/format_version";
constexpr char kManifestRecord[] = "extra/hybrid_rt/manifest.json";
constexpr char kManifestDigestRecord[] = "extra/hybrid_rt/manifest.sha256";
/// Records without a digest in the manifest: the manifest's own, and two that torch's writer adds when it closes a
/// file. Python writes the manifest after those two, and lists them.
const std::set<std::string> kUnlisted{kVersionRecord, kManifestRecord, kManifestDigestRecord, "version",
                                      ".data/serialization_id"};
/// Prefix of the names of signatures, one per signer. Signatures are made from the manifest, so the manifest can't list
/// them.
constexpr std::string_view kSignatures = "extra/hybrid_rt/signatures/";
constexpr size_t kLongestSignature = 4096;
constexpr size_t kLongestVersion = 16;
constexpr size_t kLongestDigest = 64;
/// Parsing takes up to ten times as much memory. Manifests of usual detectors have 8 to 50 KB.
constexpr size_t kLongestManifest = size_t{16} << 20;
/// Bytes by which a record may exceed the whole file: a compressed record can unpack to a thousand times its size.
/// Masks in a golden sample are mostly zeros.
constexpr size_t kMostUnpacked = size_t{64} << 20;
constexpr size_t kMostUnpackedGolden = size_t{1} << 30;

/// Returns a record's bytes after comparing them with their digest.
std::pair<at::DataPtr, size_t> checked(caffe2::serialize::PyTorchStreamReader& reader, const std::string& path,
                                       const std::string& record, const std::string& digest, size_t longest) {
  const std::string subject = "record '" + record + "'";
  if (!reader.hasRecord(record)) throw damaged(path, subject, "it to be there", "none");
  try {
    const size_t length = reader.getRecordSize(record);
    if (length > longest) {
      throw damaged(path, subject, "at most " + std::to_string(longest) + " bytes", std::to_string(length));
    }
    auto [data, size] = reader.getRecord(record);
    const std::string got = sha256(data.get(), size);
    if (got != digest) throw damaged(path, subject, "the SHA-256 " + digest, got);
    return {std::move(data), size};
  } catch (const Error&) {
    throw;
  } catch (const std::exception&) {
    throw damaged(path, subject, "to read it", "an error of the archive reader");
  }
}

std::vector<std::string> names_in(caffe2::serialize::PyTorchStreamReader& reader, const std::string& path) {
  try {
    return reader.getAllRecords();
  } catch (const std::exception&) {
    throw damaged(path, "names of records", "all of them in the archive's own directory", "another one");
  }
}

}  // namespace

Archive::Archive(const std::string& path) : path_(path), bytes_(std::make_shared<FileBytes>(path)) {
  try {
    reader_ = std::make_unique<caffe2::serialize::PyTorchStreamReader>(bytes_);
  } catch (const std::exception&) {
    throw Error(ErrorKind::kBundle, "bundle", path, "a TorchScript archive", "something else, or a truncated file",
                "Copy the file again; hybrid_rt.convert() writes bundles.");
  }
  if (!reader_->hasRecord(kVersionRecord) || !reader_->hasRecord(kManifestRecord)) {
    throw Error(ErrorKind::kBundle, "bundle", path, "a bundle of hybrid_rt", "an archive without hybrid_rt's manifest",
                "hybrid_rt.convert() writes bundles; torch.jit.load() opens other TorchScript files.");
  }
  const std::string& version = format_version_ = read(kVersionRecord, kLongestVersion);
  if (version != "1" && version != std::to_string(Manifest::kFormatVersion)) {
    const bool is_number = !version.empty() && version.find_first_not_of("0123456789") == std::string::npos;
    if (!is_number) throw damaged(path, "format version", "a number", "something else");
    throw Error(ErrorKind::kBundle, "bundle", path, "format version 1 or " + std::to_string(Manifest::kFormatVersion),
                version, "Upgrade hybrid_rt: the file was made by a newer version.");
  }
  manifest_text_ = stored_manifest_ = read(kManifestRecord, kLongestManifest);
  if (!reader_->hasRecord(kManifestDigestRecord)) throw damaged(path, "manifest", "its SHA-256 beside it", "none");
  if (sha256(manifest_text_.data(), manifest_text_.size()) != read(kManifestDigestRecord, kLongestDigest)) {
    throw damaged(path, "manifest", "the SHA-256 that was written with it", "another one");
  }
  if (version == "1") manifest_text_ = upgraded_from_version_1(manifest_text_, path);
  manifest_ = Manifest::from_json(manifest_text_, path);
  check_names();
}

Archive::~Archive() = default;

void Archive::check_names() const {
  std::set<std::string> seen;
  for (const std::string& name : names_in(*reader_, path_)) {
    const bool is_unlisted = kUnlisted.contains(name) || name.starts_with(kSignatures);
    if (!is_unlisted && !manifest_.records.contains(name)) {
      throw damaged(path_, "record '" + name + "'", "one that the manifest names", "another one");
    }
    if (!seen.insert(name).second) throw damaged(path_, "record '" + name + "'", "it once", "it twice");
  }
}

std::vector<std::string> Archive::signatures() const {
  std::vector<std::string> found;
  for (const std::string& name : names_in(*reader_, path_)) {
    if (name.starts_with(kSignatures)) found.push_back(read(name, kLongestSignature));
  }
  return found;
}

size_t Archive::longest(bool is_golden) const {
  return bytes_->size() + (is_golden ? kMostUnpackedGolden : kMostUnpacked);
}

std::string Archive::read(const std::string& record, size_t longest) const {
  try {
    const size_t length = reader_->getRecordSize(record);
    if (length > longest) {
      throw damaged(path_, "record '" + record + "'", "at most " + std::to_string(longest) + " bytes",
                    std::to_string(length));
    }
    const auto [data, size] = reader_->getRecord(record);
    return std::string(static_cast<const char*>(data.get()), size);
  } catch (const Error&) {
    throw;
  } catch (const std::exception&) {
    throw damaged(path_, "record '" + record + "'", "to read it", "an error of the archive reader");
  }
}

std::string Archive::verified(const std::string& record) const {
  const auto found = manifest_.records.find(record);
  if (found == manifest_.records.end()) {
    throw damaged(path_, "manifest, record '" + record + "'", "its SHA-256", "none");
  }
  const auto [data, size] = checked(*reader_, path_, record, found->second.sha256, longest(found->second.is_golden));
  return std::string(static_cast<const char*>(data.get()), size);
}

at::Tensor Archive::blob(const std::string& sha256) const {
  for (const auto& [name, record] : manifest_.records) {
    if (record.sha256 != sha256) continue;
    auto [data, size] = checked(*reader_, path_, name, sha256, longest(record.is_golden));
    auto owner = std::make_shared<at::DataPtr>(std::move(data));
    return at::from_blob(owner->get(), {static_cast<int64_t>(size)}, [owner](void* /*data*/) {}, at::kByte);
  }
  throw damaged(path_, "manifest", "a record with the SHA-256 " + sha256, "none");
}

void Archive::verify(Records which) const {
  for (const auto& [name, record] : manifest_.records) {
    const bool is_of_head = !record.is_blob && !record.is_golden;
    if (which == Records::kAll || is_of_head) {
      checked(*reader_, path_, name, record.sha256, longest(record.is_golden));
    }
  }
}

}  // namespace hybrid_rt
