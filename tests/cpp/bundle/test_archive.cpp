#include "bundle/archive.h"

#include <caffe2/serialize/inline_container.h>
#include <doctest/doctest.h>

#include <filesystem>
#include <fstream>
#include <iterator>
#include <map>
#include <nlohmann/json.hpp>
#include <string>

#include "common/digest.h"
#include "failure_of.h"
#include "temporary.h"

namespace {

using hybrid_rt::Archive;
using hybrid_rt::Error;
using hybrid_rt::ErrorKind;
using nlohmann::json;

using Records = std::map<std::string, std::string>;

const std::string kVersion = "extra/hybrid_rt/format_version";
const std::string kManifest = "extra/hybrid_rt/manifest.json";
const std::string kDigest = "extra/hybrid_rt/manifest.sha256";

std::string digest(const std::string& text) { return hybrid_rt::sha256(text.data(), text.size()); }

void set_manifest(Records& records, const std::string& text) {
  records[kManifest] = text;
  records[kDigest] = digest(text);
}

/// Returns a head of one record, an engine's bytes, and the manifest of both.
Records valid() {
  Records records{{"code/head.py", "def forward"}, {"constants/0", std::string(1000, 'w')}, {kVersion, "2"}};
  json manifest{{"format_version", 2}, {"engines", json::array()}};
  manifest["records"]["code/head.py"] = {{"sha256", digest(records["code/head.py"])}, {"size", 11}};
  manifest["records"]["constants/0"] = {{"sha256", digest(records["constants/0"])}, {"size", 1000}, {"is_blob", true}};
  manifest["records"]["byteorder"] = {{"sha256", digest("little")}, {"size", 6}};  // torch's writer adds this record
  set_manifest(records, manifest.dump());
  return records;
}

class ArchiveFile {
 public:
  explicit ArchiveFile(const Records& records) : path_(directory_.file("bundle.pt")) {
    caffe2::serialize::PyTorchStreamWriter writer(path_);
    for (const auto& [name, bytes] : records) writer.writeRecord(name, bytes.data(), bytes.size());
    writer.writeEndOfFile();
  }

  const std::string& path() const { return path_; }

  std::string bytes() const {
    std::ifstream stream(path_, std::ios::binary);
    return {std::istreambuf_iterator<char>(stream), {}};
  }

  void overwrite(const std::string& bytes) const {
    std::ofstream(path_, std::ios::binary | std::ios::trunc).write(bytes.data(), static_cast<long>(bytes.size()));
  }

 private:
  TemporaryDirectory directory_;
  std::string path_;
};

/// Returns the error of opening and verifying the whole archive.
Error failure_of_archive(const std::string& path) {
  return failure_of([&] { Archive(path).verify(Archive::Records::kAll); });
}

Error failure_of_records(const Records& records) { return failure_of_archive(ArchiveFile(records).path()); }

}  // namespace

TEST_CASE("a complete archive opens, returns its manifest and verifies") {
  const ArchiveFile file(valid());
  const Archive archive(file.path());
  CHECK(archive.path() == file.path());
  CHECK(archive.manifest_text() == valid()[kManifest]);
  CHECK_NOTHROW(archive.verify(Archive::Records::kHead));
  CHECK_NOTHROW(archive.verify(Archive::Records::kAll));
}

TEST_CASE("a path that is not a file is refused") {
  const TemporaryDirectory directory;
  for (const std::string& path : {directory.file("missing.pt"), directory.path().string(), std::string()}) {
    CAPTURE(path);
    const Error error = failure_of_archive(path);
    CHECK(error.kind() == ErrorKind::kBundle);
    CHECK(contains(error.what(), "hybrid_rt[bundle]: " + path + ": expected a file, got "));
  }
}

TEST_CASE("a file that is not an archive is refused") {
  const ArchiveFile file(valid());
  for (const std::string& bytes : {std::string(), std::string("no archive"), std::string(100000, 'x')}) {
    file.overwrite(bytes);
    CHECK(contains(failure_of_archive(file.path()).what(), "expected a TorchScript archive, got something else"));
  }
}

TEST_CASE("a truncated archive is refused wherever it ends") {
  const ArchiveFile file(valid());
  const std::string bytes = file.bytes();
  for (size_t part = 0; part < 20; ++part) {
    CAPTURE(part);
    file.overwrite(bytes.substr(0, bytes.size() * part / 20));
    CHECK(failure_of_archive(file.path()).kind() == ErrorKind::kBundle);
  }
  file.overwrite(bytes.substr(0, bytes.size() - 1));
  CHECK(failure_of_archive(file.path()).kind() == ErrorKind::kBundle);
}

TEST_CASE("a TorchScript archive that is not a bundle has an error of its own") {
  Records records = valid();
  records.erase(kManifest);
  CHECK(contains(failure_of_records(records).what(), "expected a bundle of hybrid_rt, got an archive without"));
  records = valid();
  records.erase(kVersion);
  CHECK(contains(failure_of_records(records).what(), "torch.jit.load() opens other TorchScript files."));
}

TEST_CASE("a record that the manifest does not name is refused") {
  Records records = valid();
  records["constants/1"] = "who looks at this?";
  CHECK(contains(failure_of_records(records).what(), "record 'constants/1': expected one that the manifest names"));
}

TEST_CASE("an open archive reads the file that was opened, even if it is replaced") {
  const ArchiveFile file(valid());
  const Archive archive(file.path());
  Records others = valid();
  others["code/head.py"] = "def other()";
  const ArchiveFile other(others);
  std::filesystem::rename(other.path(), file.path());
  CHECK(archive.verified("code/head.py") == "def forward");
  CHECK(archive.bytes()->size() > 1000);
  CHECK(contains(failure_of_archive(file.path()).what(), "code/head.py"));
}

TEST_CASE("deeply nested brackets are refused") {
  Records records = valid();
  const std::string deep = std::string(100000, '[') + std::string(100000, ']');
  set_manifest(records, "{\"engines\": " + deep + "}");
  CHECK(contains(failure_of_records(records).what(), "expected JSON, nested at most 64 deep"));
}

TEST_CASE("a newer format is refused with the remedy") {
  Records records = valid();
  records[kVersion] = "3";
  CHECK(contains(failure_of_records(records).what(),
                 "expected format version 1 or 2, got 3. Upgrade hybrid_rt: the file was made by a newer version."));
}

TEST_CASE("a format version that is not a number is refused as damage") {
  for (const char* version : {"", "one", "-1", "1\n"}) {
    CAPTURE(version);
    Records records = valid();
    records[kVersion] = version;
    CHECK(contains(failure_of_records(records).what(), "format version: expected a number, got something else."));
  }
}

TEST_CASE("an altered manifest is refused before it is read") {
  Records records = valid();
  records[kManifest].replace(0, 1, "[");
  CHECK(contains(failure_of_records(records).what(), "manifest: expected the SHA-256 that was written with it"));
  records = valid();
  records.erase(kDigest);
  CHECK(contains(failure_of_records(records).what(), "manifest: expected its SHA-256 beside it, got none."));
}

TEST_CASE("a manifest without records is refused") {
  for (const char* text : {"{}", R"({"records": []})"}) {
    CAPTURE(text);
    Records records = valid();
    set_manifest(records, text);
    CHECK(contains(failure_of_records(records).what(), "manifest: expected 'records', got none."));
  }
}

TEST_CASE("a manifest that is not a JSON object is refused") {
  const std::map<std::string, std::string> cases{{"", "expected JSON, nested at most 64 deep, got something else."},
                                                 {"{", "expected JSON, nested at most 64 deep, got something else."},
                                                 {"[]", "expected a JSON object, got array."},
                                                 {"null", "expected a JSON object, got null."}};
  for (const auto& [text, expected] : cases) {
    CAPTURE(text);
    for (const char* version : {"1", "2"}) {
      Records records = valid();
      records[kVersion] = version;
      set_manifest(records, text);
      CHECK(contains(failure_of_records(records).what(), "manifest: " + expected));
    }
  }
}

TEST_CASE("records in another form are refused") {
  for (const char* text :
       {R"({"records": {"constants/0": 5}})", R"({"records": {"constants/0": {"sha256": 5}}})",
        R"({"records": {"constants/0": {"is_blob": "yes"}}})", R"({"records": {"constants/0": {}}})"}) {
    CAPTURE(text);
    Records records = valid();
    set_manifest(records, text);
    const ArchiveFile file(records);
    CHECK(contains(failure_of_archive(file.path()).what(), "record 'constants/0'"));
  }
}

TEST_CASE("a missing record is named") {
  Records records = valid();
  records.erase("code/head.py");
  CHECK(contains(failure_of_records(records).what(), "record 'code/head.py': expected it to be there, got none."));
}

TEST_CASE("an altered record of the head is named") {
  Records records = valid();
  records["code/head.py"] = "def backward";
  const ArchiveFile file(records);
  const Error error = failure_of([&] { Archive(file.path()).verify(Archive::Records::kHead); });
  CHECK(error.kind() == ErrorKind::kBundle);
  CHECK(contains(error.what(), "record 'code/head.py': expected the SHA-256 " + digest("def forward") + ", got " +
                                   digest("def backward") + "."));
}

/// Checks that the damage of constants/0 is found only by who asks for all records.
static void check_seen_by_all_only(const Records& records) {
  const ArchiveFile file(records);
  const Archive archive(file.path());
  CHECK_NOTHROW(archive.verify(Archive::Records::kHead));
  CHECK(contains(failure_of([&] { archive.verify(Archive::Records::kAll); }).what(), "record 'constants/0'"));
}

TEST_CASE("an engine's bytes are compared only on request") {
  Records records = valid();
  records["constants/0"][500] = 'x';
  check_seen_by_all_only(records);
}

TEST_CASE("the golden sample is compared only on request") {
  Records records = valid();
  json manifest = json::parse(records[kManifest]);
  manifest["records"]["constants/0"] = {{"sha256", digest("another")}, {"size", 1000}, {"is_golden", true}};
  set_manifest(records, manifest.dump());
  check_seen_by_all_only(records);
}

TEST_CASE("one record is read and compared with its digest") {
  Records records = valid();
  const ArchiveFile file(records);
  CHECK(Archive(file.path()).verified("code/head.py") == "def forward");
  CHECK(contains(failure_of([&] { Archive(file.path()).verified("nosuch"); }).what(),
                 "manifest, record 'nosuch': expected its SHA-256, got none."));
  records["code/head.py"] = "def backward";
  const ArchiveFile altered(records);
  CHECK(contains(failure_of([&] { Archive(altered.path()).verified("code/head.py"); }).what(),
                 "record 'code/head.py': expected the SHA-256 " + digest("def forward")));
}

TEST_CASE("a flipped bit in the file is detected") {
  const ArchiveFile file(valid());
  std::string bytes = file.bytes();
  bytes[bytes.find("wwwwww") + 300] ^= 1;
  file.overwrite(bytes);
  CHECK(contains(failure_of_archive(file.path()).what(), "record 'constants/0'"));
}
