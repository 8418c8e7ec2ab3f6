#include "bundle/manifest.h"

#include <nlohmann/json.hpp>
#include <sstream>

#include "common/damaged.h"
#include "common/json_text.h"
#include "hybrid_rt/error.h"

namespace hybrid_rt {
namespace {

using nlohmann::json;
using Ordered = nlohmann::ordered_json;

/// Parses a text that must be a JSON object. Throws Error(kBundle).
template <typename Json>
Json object_from(const std::string& text, const std::string& path) {
  Json parsed = parse_json<Json>(text);
  if (parsed.is_discarded()) {
    const std::string expected = "JSON, nested at most " + std::to_string(kDeepestJson) + " deep";
    throw damaged_manifest(path, "", expected, "something else");
  }
  if (!parsed.is_object()) throw damaged_manifest(path, "", "a JSON object", parsed.type_name());
  return parsed;
}

std::map<std::string, StoredRecord> records_from(const json& manifest, const std::string& path) {
  const auto found = manifest.find("records");
  if (found == manifest.end() || !found->is_object()) throw damaged_manifest(path, "", "'records'", "none");
  std::map<std::string, StoredRecord> records;
  for (const auto& [name, entry] : found->items()) {
    try {
      records[name] = {.sha256 = entry.at("sha256").get<std::string>(),
                       .is_blob = entry.value("is_blob", false),
                       .is_golden = entry.value("is_golden", false)};
    } catch (const json::exception&) {
      throw damaged_manifest(path, "record '" + name + "'", "its SHA-256", "none");
    }
  }
  return records;
}

StoredEngine engine_from(const json& entry, const std::string& path) {
  StoredEngine engine;
  try {
    for (const json& member : entry.at("members")) {
      engine.members.push_back({.name = member.at("name").get<std::string>(),
                                .first = integers_in(member.at("first")).get<int64_t>(),
                                .count = integers_in(member.at("count")).get<int64_t>()});
    }
    if (engine.members.empty()) throw damaged_manifest(path, "an engine's members", "at least one segment", "none");
    engine.variants = ArtifactSpec::list_from_json(entry.at("variants").dump());
    engine.table = TableEntry::list_from_json(entry.at("table").dump());
  } catch (const json::exception& error) {
    throw damaged_manifest(path, "an engine", "'members', 'variants' and 'table' as docs/format.md describes them",
                           error.what());
  }
  return engine;
}

/// Converts what version 1 called a segment into an engine.
Ordered upgraded_engine(Ordered segment) {
  if (!segment.contains("members")) {
    segment["members"] = Ordered::array(
        {{{"name", segment.at("name")}, {"first", 0}, {"count", segment.at("variants").at(0).at("outputs").size()}}});
  }
  Ordered engine{{"members", segment.at("members")}};
  for (const auto& [key, value] : segment.items()) {
    if (key != "name" && key != "members") engine[key] = value;
  }
  return engine;
}

/// Adds the name of the engine to each verified output.
void upgrade_verification(Ordered& verification) {
  if (!verification.is_object() || !verification.contains("tensors")) return;
  Ordered& tensors = verification.at("tensors");
  if (!tensors.is_array()) return;  // iterating over a non-array visits the value itself, which is replaced
  for (Ordered& error : tensors) {
    if (!error.is_object()) continue;
    Ordered renamed = Ordered::object();
    for (const auto& [key, value] : error.items()) renamed[key == "segment" ? "engine" : key] = value;
    error = std::move(renamed);
  }
}

}  // namespace

std::vector<std::string> StoredEngine::segments() const {
  std::vector<std::string> names;
  for (const Member& member : members) names.push_back(member.name);
  return names;
}

std::string StoredEngine::name() const { return engine_name(segments()); }

Manifest Manifest::from_json(const std::string& text, const std::string& path) {
  const json parsed = object_from<json>(text, path);
  Manifest manifest;
  manifest.records = records_from(parsed, path);
  const auto engines = parsed.find("engines");
  if (engines == parsed.end() || !engines->is_array())
    throw damaged_manifest(path, "", "a list of engines", "something else");
  for (const json& entry : *engines) manifest.engines.push_back(engine_from(entry, path));
  try {
    manifest.class_names = parsed.value("class_names", std::vector<std::string>());
  } catch (const json::exception& error) {
    throw damaged_manifest(path, "class_names", "a list of strings", error.what());
  }
  const auto golden = parsed.find("golden");
  if (golden == parsed.end() || !golden->is_object()) {
    manifest.no_golden = "an older hybrid_rt made this file";
  } else if (const auto absent = golden->find("absent"); absent != golden->end()) {
    manifest.no_golden = absent->is_string() ? absent->get<std::string>() : "the file does not say why";
  } else {
    manifest.golden = golden->dump();
  }
  return manifest;
}

std::string upgraded_from_version_1(const std::string& text, const std::string& path) {
  const auto old = object_from<Ordered>(text, path);
  Ordered manifest = Ordered::object();
  try {
    for (const auto& [key, value] : old.items()) {
      if (key == "format_version") {
        manifest[key] = Manifest::kFormatVersion;
      } else if (key == "segments") {
        manifest["engines"] = Ordered::array();
        for (const Ordered& segment : value) manifest["engines"].push_back(upgraded_engine(segment));
      } else {
        manifest[key] = value;
        if (key == "verification") upgrade_verification(manifest[key]);
      }
    }
  } catch (const Ordered::exception& error) {
    throw damaged_manifest(path, "", "the fields of format version 1", error.what());
  }
  return manifest.dump(1);
}

std::string engine_name(const std::vector<std::string>& segments) {
  std::string name;
  for (const std::string& segment : segments) name += (name.empty() ? "" : "+") + segment;
  return name;
}

std::vector<std::string> segments_of_version_1(const std::string& engine) {
  std::vector<std::string> segments;
  std::istringstream names(engine);
  for (std::string name; std::getline(names, name, '+');) segments.push_back(name);
  return segments;
}

}  // namespace hybrid_rt
