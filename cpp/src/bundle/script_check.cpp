#include "hybrid_rt/plugin/script_check.h"

#include <caffe2/serialize/inline_container.h>

#include <algorithm>
#include <cstring>
#include <optional>

#include "bundle/pickle_check.h"
#include "bundle/script_text.h"
#include "hybrid_rt/error.h"

namespace hybrid_rt {
namespace {

using caffe2::serialize::PyTorchStreamReader;

/// Limit of one record of code or one pickle. Those of real heads have some hundred kilobytes.
constexpr size_t kLongest = size_t{64} << 20;

Error refused(const std::string& subject, const std::string& record, const std::string& got) {
  return Error(
      ErrorKind::kBundle, "script", subject + ", record '" + record + "'", "a program that only computes", got,
      "hybrid_rt.convert() writes no such file: get it from a source that you trust, or convert the detector again.");
}

class Memory final : public caffe2::serialize::ReadAdapterInterface {
 public:
  explicit Memory(std::string_view bytes) : bytes_(bytes) {}
  size_t size() const override { return bytes_.size(); }
  size_t read(uint64_t position, void* into, size_t count, const char* /*what*/) const override {
    if (position >= bytes_.size()) return 0;
    const size_t taken = std::min(count, bytes_.size() - static_cast<size_t>(position));
    std::memcpy(into, bytes_.data() + position, taken);
    return taken;
  }

 private:
  std::string_view bytes_;
};

std::optional<uint64_t> size_of(PyTorchStreamReader& reader, const std::string& record) {
  if (!reader.hasRecord(record)) return std::nullopt;
  return reader.getRecordSize(record);
}

/// Returns the sizes of storages: "constants/3" is the record of "constants.pkl" and key "3".
StorageSize storages_of(PyTorchStreamReader& reader, const std::string& pickle) {
  const std::string directory = pickle.substr(0, pickle.rfind('.')) + "/";
  return [&reader, directory](std::string_view key) { return size_of(reader, directory + std::string(key)); };
}

std::optional<std::string> refused_in(PyTorchStreamReader& reader, const std::string& record, size_t& tokens) {
  // torch's first format, whose reader checks nothing.
  if (record == "model.json") return "a record of torch's first format";
  const bool is_code = record.starts_with("code/") && record.ends_with(".py");
  const bool is_pickle = record.ends_with("pkl");
  if (!is_code && !is_pickle) return std::nullopt;
  if (reader.getRecordSize(record) > kLongest) return "more than " + std::to_string(kLongest) + " bytes";
  const auto [data, size] = reader.getRecord(record);
  const std::string_view text(static_cast<const char*>(data.get()), size);
  return is_code ? refused_in_code(text, tokens)
                 : refused_in_pickle(text, storages_of(reader, record), record.ends_with(".debug_pkl"));
}

}  // namespace

void check_script(const std::shared_ptr<caffe2::serialize::ReadAdapterInterface>& archive, const std::string& subject) {
  std::string record = "archive";
  try {
    PyTorchStreamReader reader(archive);
    size_t tokens = 0;
    for (const std::string& name : reader.getAllRecords()) {
      record = name;
      if (const std::optional<std::string> got = refused_in(reader, name, tokens)) throw refused(subject, name, *got);
    }
  } catch (const Error&) {
    throw;
  } catch (const std::exception&) {
    throw refused(subject, record, "what the archive reader can't read");
  }
}

void check_script(std::string_view archive, const std::string& subject) {
  check_script(std::make_shared<Memory>(archive), subject);
}

}  // namespace hybrid_rt
