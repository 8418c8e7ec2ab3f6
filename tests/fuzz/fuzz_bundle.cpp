// Feeds bundles to all code that reads one before torch does. Each is read, or refused with an Error. A bundle that is
// accepted by a trusted key's signature has the signed records. HYBRID_RT_FUZZ_SIGNED names the directory with the key
// (trusted.pub) and the signed file (signed.pt); tests/fuzz/seeds.py writes both.

#include <ATen/ops/from_blob.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <memory>
#include <span>
#include <string>
#include <tuple>
#include <vector>

#include "archive_records.h"
#include "bundle/archive.h"
#include "bundle/blob_table.h"
#include "bundle/recorded_inputs.h"
#include "bundle/signing.h"
#include "hybrid_rt/error.h"
#include "hybrid_rt/plugin/conditions.h"
#include "hybrid_rt/plugin/script_check.h"
#include "require.h"

namespace {

constexpr char kSignatures[] = "extra/hybrid_rt/signatures/";
/// Some texts contain names of records, which may be as long as ZIP allows.
constexpr std::size_t kLongestMessage = 70'000;

/// Returns true if `read` succeeds. Only an Error is allowed otherwise.
template <typename Read>
bool is_read(Read read) {
  try {
    read();
    return true;
  } catch (const hybrid_rt::Error& error) {
    const std::string text = error.what();
    require(text.starts_with("hybrid_rt[") && text.find(": expected ") != std::string::npos &&
                text.find(", got ") != std::string::npos,
            "an error has the form hybrid_rt[SCOPE]: SUBJECT: expected X, got Y");
    require(text.size() < kLongestMessage, "an error's text is bounded");
    return false;
  }
}

std::vector<Record> without_signatures(std::span<const std::uint8_t> archive) {
  std::vector<Record> records = records_of(archive).value_or(std::vector<Record>{{"unreadable", ""}});
  std::erase_if(records, [](const Record& record) { return record.name.starts_with(kSignatures); });
  std::sort(records.begin(), records.end(),
            [](const Record& a, const Record& b) { return std::tie(a.name, a.content) < std::tie(b.name, b.content); });
  return records;
}

/// The trusted key and the signed records.
struct Signed {
  Signed() {
    const char* const directory = std::getenv("HYBRID_RT_FUZZ_SIGNED");
    require(directory != nullptr, "HYBRID_RT_FUZZ_SIGNED names a directory that tests/fuzz/seeds.py wrote");
    key = std::string(directory) + "/trusted.pub";
    std::ifstream stream(std::string(directory) + "/signed.pt", std::ios::binary);
    const std::vector<char> bytes{std::istreambuf_iterator<char>(stream), {}};
    records = without_signatures({reinterpret_cast<const std::uint8_t*>(bytes.data()), bytes.size()});
    require(records.size() > 1, "signed.pt is a bundle");
  }

  std::string key;
  std::vector<Record> records;
};

/// A file without a name, for readers that need a path.
class File {
 public:
  File() : descriptor_(memfd_create("fuzzed", 0)) { require(descriptor_ >= 0, "a file in memory can be made"); }

  std::string with(std::span<const std::uint8_t> bytes) const {
    require(ftruncate(descriptor_, 0) == 0 &&
                pwrite(descriptor_, bytes.data(), bytes.size(), 0) == static_cast<ssize_t>(bytes.size()),
            "a file in memory can be written");
    return "/proc/self/fd/" + std::to_string(descriptor_);
  }

 private:
  int descriptor_;
};

void read_engine(const std::shared_ptr<const hybrid_rt::Archive>& file, std::size_t index) {
  const hybrid_rt::StoredEngine& engine = file->manifest().engines[index];
  is_read([&] {
    const hybrid_rt::SizeConditions conditions = hybrid_rt::size_conditions(file->manifest_text(), index, file->path());
    for (std::string text : {conditions.inputs, conditions.outputs}) {
      const at::Tensor bytes = at::from_blob(text.data(), {static_cast<std::int64_t>(text.size())}, at::kByte);
      for (const hybrid_rt::ArtifactSpec& variant : engine.variants) {
        is_read([&] { hybrid_rt::Conditions("fuzzed", bytes, variant.inputs); });
      }
    }
  });
  is_read([&] {
    const hybrid_rt::BlobTable table(engine.name(), engine.table, file);
    table.check(engine.variants);
    for (const hybrid_rt::ArtifactSpec& variant : engine.variants) is_read([&] { table.blobs_of(variant); });
  });
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static const Signed trusted;
  static const File file_in_memory;
  const std::string path = file_in_memory.with({data, size});
  std::shared_ptr<const hybrid_rt::Archive> file;
  if (!is_read([&] { file = std::make_shared<const hybrid_rt::Archive>(path); })) return 0;
  is_read([&] { file->verify(hybrid_rt::Archive::Records::kAll); });
  is_read([&] { hybrid_rt::check_script(file->bytes(), path); });
  is_read([&] { hybrid_rt::image_inputs(file->manifest_text(), path); });
  for (std::size_t i = 0; i < std::min<std::size_t>(file->manifest().engines.size(), 8); ++i) read_engine(file, i);
  if (is_read([&] { hybrid_rt::require_signature(*file, {trusted.key}); })) {
    require(without_signatures({data, size}) == trusted.records, "what a signature lets in is what was signed");
  }
  return 0;
}
