#include "bundle/archive.h"

#include <ATen/ops/from_blob.h>
#include <caffe2/serialize/inline_container.h>

#include <filesystem>
#include <nlohmann/json.hpp>
#include <utility>

#include "common/digest.h"
#include "hybrid_rt/error.h"

namespace hybrid_rt {
namespace {

using nlohmann::json;

constexpr int kFormatVersion = 1;
constexpr char kVersionRecord[] = "extra/hybrid_rt/format_version";
constexpr char kManifestRecord[] = "extra/hybrid_rt/manifest.json";
constexpr char kManifestDigestRecord[] = "extra/hybrid_rt/manifest.sha256";
constexpr char kDamaged[] = "The file was altered or damaged: copy or convert it again.";

Error damaged(const std::string& path, const std::string& what, const std::string& expected, const std::string& got) {
  return Error(ErrorKind::kBundle, "bundle", path + (what.empty() ? "" : ", " + what), expected, got, kDamaged);
}

/// A record's bytes, compared with their digest.
std::pair<at::DataPtr, size_t> checked(caffe2::serialize::PyTorchStreamReader& reader, const std::string& path,
                                       const std::string& record, const std::string& digest) {
  const std::string subject = "record '" + record + "'";
  if (!reader.hasRecord(record)) throw damaged(path, subject, "it to be there", "none");
  try {
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

}  // namespace

Archive::Archive(const std::string& path) : path_(path) {
  std::error_code failed;
  if (!std::filesystem::is_regular_file(path, failed)) {
    throw Error(ErrorKind::kBundle, "bundle", path, "a file", failed ? failed.message() : "no regular file",
                "Check the path.");
  }
  try {
    reader_ = std::make_unique<caffe2::serialize::PyTorchStreamReader>(path);
  } catch (const std::exception&) {
    throw Error(ErrorKind::kBundle, "bundle", path, "a TorchScript archive", "something else, or a truncated file",
                "Copy the file again; hybrid_rt.convert() makes bundles.");
  }
  if (!reader_->hasRecord(kVersionRecord) || !reader_->hasRecord(kManifestRecord)) {
    throw Error(ErrorKind::kBundle, "bundle", path, "a bundle of hybrid_rt", "an archive without a manifest of ours",
                "hybrid_rt.convert() makes bundles; torch.jit.load() opens other TorchScript files.");
  }
  const std::string version = read(kVersionRecord);
  if (version != std::to_string(kFormatVersion)) {
    const bool is_number = !version.empty() && version.find_first_not_of("0123456789") == std::string::npos;
    if (!is_number) throw damaged(path, "format version", "a number", "something else");
    throw Error(ErrorKind::kBundle, "bundle", path, "format version " + std::to_string(kFormatVersion), version,
                "The file was made by a newer hybrid_rt: upgrade this one.");
  }
  manifest_ = read(kManifestRecord);
  if (!reader_->hasRecord(kManifestDigestRecord)) throw damaged(path, "manifest", "its SHA-256 beside it", "none");
  if (sha256(manifest_.data(), manifest_.size()) != read(kManifestDigestRecord)) {
    throw damaged(path, "manifest", "the SHA-256 that was written with it", "another one");
  }
}

Archive::~Archive() = default;

std::string Archive::read(const std::string& record) const {
  try {
    const auto [data, size] = reader_->getRecord(record);
    return std::string(static_cast<const char*>(data.get()), size);
  } catch (const std::exception&) {
    throw damaged(path_, "record '" + record + "'", "to read it", "an error of the archive reader");
  }
}

std::string Archive::verified(const std::string& record) const {
  const json manifest = json::parse(manifest_, nullptr, /*allow_exceptions=*/false);
  std::string digest;
  try {
    digest = manifest.at("records").at(record).at("sha256").get<std::string>();
  } catch (const json::exception&) {
    throw damaged(path_, "manifest, record '" + record + "'", "its SHA-256", "none");
  }
  const auto [data, size] = checked(*reader_, path_, record, digest);
  return std::string(static_cast<const char*>(data.get()), size);
}

at::Tensor Archive::blob(const std::string& sha256) const {
  const json manifest = json::parse(manifest_, nullptr, /*allow_exceptions=*/false);
  const auto records = manifest.is_object() ? manifest.find("records") : manifest.end();
  if (records == manifest.end() || !records->is_object()) throw damaged(path_, "manifest", "'records'", "none");
  for (const auto& [name, entry] : records->items()) {
    if (!entry.is_object() || entry.value("sha256", "") != sha256) continue;
    auto [data, size] = checked(*reader_, path_, name, sha256);
    auto owner = std::make_shared<at::DataPtr>(std::move(data));
    return at::from_blob(owner->get(), {static_cast<int64_t>(size)}, [owner](void* /*data*/) {}, at::kByte);
  }
  throw damaged(path_, "manifest", "a record with the SHA-256 " + sha256, "none");
}

void Archive::verify(Records which) const {
  const json manifest = json::parse(manifest_, nullptr, /*allow_exceptions=*/false);
  const auto records = manifest.is_object() ? manifest.find("records") : manifest.end();
  if (records == manifest.end() || !records->is_object()) throw damaged(path_, "manifest", "'records'", "none");
  for (const auto& [name, entry] : records->items()) {
    std::string digest;
    bool is_of_head = true;
    try {
      digest = entry.at("sha256").get<std::string>();
      is_of_head = !entry.value("is_blob", false) && !entry.value("is_golden", false);
    } catch (const json::exception&) {
      throw damaged(path_, "manifest, record '" + name + "'", "its SHA-256", "none");
    }
    if (which == Records::kAll || is_of_head) checked(*reader_, path_, name, digest);
  }
}

}  // namespace hybrid_rt
