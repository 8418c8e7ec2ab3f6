// Mutates bundles like an attacker: changes a record and recomputes the digests that cover it, so that the code behind
// the checks is reached. libFuzzer calls this instead of its own mutator.

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <nlohmann/json.hpp>
#include <random>
#include <string>
#include <vector>

#include "archive_records.h"
#include "common/digest.h"

extern "C" std::size_t LLVMFuzzerMutate(std::uint8_t* data, std::size_t size, std::size_t max_size);

namespace {

using nlohmann::json;
using Random = std::minstd_rand;

constexpr char kManifest[] = "extra/hybrid_rt/manifest.json";
constexpr char kManifestDigest[] = "extra/hybrid_rt/manifest.sha256";
/// Maximum growth of a record per mutation, in bytes.
constexpr std::size_t kGrowth = 256;
/// nlohmann's dump() recurses for each level.
constexpr std::ptrdiff_t kMostBrackets = 20'000;

std::string digest_of(const std::string& content) { return hybrid_rt::sha256(content.data(), content.size()); }

json nested(std::size_t depth) {
  json value = 0;
  for (std::size_t i = 0; i < depth; ++i) value = json::array({std::move(value)});
  return value;
}

json odd_value(Random& chance) {
  static const std::vector<json> values = [] {
    auto plain = json::parse(R"([0, 1, -1, 2, 255, 65536, 2147483647, -2147483648, 4294967296, 9223372036854775807,
      -9223372036854775808, 18446744073709551615, 0.5, -0.0, 1e308, null, true, false, "", "..", "/", "%s", "backbone",
      "float64", "int8", "cpu", "NCHW", "0.2: 1.2: 2 * ==", "\u0000", [], {}])");
    for (const std::size_t depth : {3, 63, 70}) plain.push_back(nested(depth));
    plain.push_back(std::vector<int>(300, 1));
    plain.push_back(std::string(5000, 'a'));
    plain.push_back("\xed\xa0\xbd");
    plain.push_back("\x1b[31m");
    return plain.get<std::vector<json>>();
  }();
  return values[chance() % values.size()];
}

/// Returns all values within a value, without itself.
std::vector<json*> values_in(json& document) {
  std::vector<json*> found;
  std::vector<json*> open{&document};
  while (!open.empty()) {
    json* const value = open.back();
    open.pop_back();
    if (!value->is_structured()) continue;
    for (json& inner : *value) {
      found.push_back(&inner);
      open.push_back(&inner);
    }
  }
  return found;
}

/// Gives a value of an object another key.
void rename_key(json& object, const json& key, Random& chance) {
  const auto chosen = std::next(object.begin(), static_cast<std::ptrdiff_t>(chance() % object.size()));
  json value = *chosen;
  object.erase(chosen);
  object[key.is_string() ? key.get<std::string>() : key.dump(-1, ' ', false, json::error_handler_t::replace)] =
      std::move(value);
}

void change(json& value, const json& other, Random& chance) {
  switch (chance() % 7) {
    case 0:
      value = other;
      break;
    case 1:
      if (value.is_number_integer()) {
        const std::vector<std::int64_t> steps{-1, 1, 2, 64, 1 << 20};
        value = value.get<std::uint64_t>() + static_cast<std::uint64_t>(steps[chance() % steps.size()]);
        break;
      }
      [[fallthrough]];
    case 2:
      if (value.is_structured() && !value.empty()) {
        value.erase(std::next(value.begin(), static_cast<std::ptrdiff_t>(chance() % value.size())));
        break;
      }
      [[fallthrough]];
    case 3:
      if (value.is_array() && !value.empty()) {
        value.push_back(value.at(chance() % value.size()));
        break;
      }
      [[fallthrough]];
    case 4:
      if (value.is_object() && !value.empty()) {
        rename_key(value, chance() % 2 == 0 ? other : odd_value(chance), chance);
        break;
      }
      [[fallthrough]];
    default:
      value = odd_value(chance);
  }
}

/// Changes one value of a JSON text. Returns false if it is not JSON.
bool change_json(std::string& text, Random& chance) {
  if (std::count(text.begin(), text.end(), '[') + std::count(text.begin(), text.end(), '{') > kMostBrackets)
    return false;
  json document = json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (document.is_discarded()) return false;
  std::vector<json*> values = values_in(document);
  if (values.empty()) return false;
  const json other = *values[chance() % values.size()];
  change(*values[chance() % values.size()], other, chance);
  text = document.dump(-1, ' ', false, json::error_handler_t::replace);
  return true;
}

void change_bytes(std::string& content) {
  const std::size_t size = content.size();
  content.resize(size + kGrowth);
  content.resize(LLVMFuzzerMutate(reinterpret_cast<std::uint8_t*>(content.data()), size, content.size()));
}

void change_record(std::vector<Record>& records, Random& chance) {
  Record& chosen = records[chance() % records.size()];
  switch (chance() % 24) {
    case 0:
      records.push_back(chosen);
      return;
    case 1:
      std::swap(chosen, records.back());
      records.pop_back();
      return;
    case 2:
      chosen.content = records[chance() % records.size()].content;
      return;
    case 3:
      change_bytes(chosen.name);
      return;
    default:
      break;
  }
  const auto manifest =
      std::find_if(records.begin(), records.end(), [](const Record& record) { return record.name == kManifest; });
  Record& record = chance() % 2 == 0 && manifest != records.end() ? *manifest : chosen;
  const bool is_json = record.name.ends_with(".json") && chance() % 8 != 0;
  if (!is_json || !change_json(record.content, chance)) change_bytes(record.content);
}

void replace_all(std::string& text, const std::string& old, const std::string& now) {
  for (std::size_t at = text.find(old); at != std::string::npos; at = text.find(old, at + now.size())) {
    text.replace(at, old.size(), now);
  }
}

/// Updates the digests in the manifest, including those of an engine's blobs, and the manifest's own.
void compute_digests(std::vector<Record>& records) {
  Record* manifest = nullptr;
  Record* digest = nullptr;
  for (Record& record : records) {
    if (record.name == kManifest) manifest = &record;
    if (record.name == kManifestDigest) digest = &record;
  }
  if (manifest == nullptr || digest == nullptr) return;
  const json parsed = json::parse(manifest->content, nullptr, /*allow_exceptions=*/false);
  const auto entries = parsed.is_object() ? parsed.find("records") : parsed.end();
  if (parsed.is_object() && entries != parsed.end() && entries->is_object()) {
    for (const Record& record : records) {
      const auto entry = entries->find(record.name);
      if (entry == entries->end() || !entry->is_object()) continue;
      const auto old = entry->find("sha256");
      if (old == entry->end() || !old->is_string()) continue;
      const std::string text = old->get<std::string>();
      if (text.size() == 64) replace_all(manifest->content, text, digest_of(record.content));
    }
  }
  digest->content = digest_of(manifest->content);
}

}  // namespace

extern "C" std::size_t LLVMFuzzerCustomMutator(std::uint8_t* data, std::size_t size, std::size_t max_size,
                                               unsigned seed) {
  Random chance(seed + 1);
  std::optional<std::vector<Record>> records = records_of({data, size});
  if (!records || records->empty() || chance() % 20 == 0) return LLVMFuzzerMutate(data, size, max_size);
  for (unsigned i = chance() % 3; i < 3 && !records->empty(); ++i) change_record(*records, chance);
  if (chance() % 10 != 0) compute_digests(*records);
  const std::string made = archive_of(*records);
  if (made.size() > max_size) return LLVMFuzzerMutate(data, size, max_size);
  std::memcpy(data, made.data(), made.size());
  return made.size();
}
