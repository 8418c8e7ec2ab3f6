#include "bundle/manifest.h"

#include <doctest/doctest.h>

#include <functional>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

#include "failure_of.h"
#include "hybrid_rt/class_names.h"

namespace {

using hybrid_rt::Manifest;
using nlohmann::json;

using Names = std::vector<std::string>;

json tensor(const std::string& name) {
  return {{"name", name}, {"dtype", "float32"}, {"min", {1, 3}}, {"opt", {1, 3}}, {"max", {1, 3}}};
}

json variant() {
  return {{"backend", "torchscript"},
          {"precision", "fp32"},
          {"device", "cpu"},
          {"inputs", {tensor("x")}},
          {"outputs", {tensor("0"), tensor("1")}},
          {"requirements", json::object()},
          {"versions", {{"torch", "2.14.1"}}},
          {"blobs", {{{"name", "module"}, {"size", 3}, {"sha256", "00"}, {"pieces", {{0, 0, 3}}}}}}};
}

json version_2() {
  return {{"format_version", 2},
          {"engines",
           {{{"members",
              {{{"name", "backbone"}, {"first", 0}, {"count", 1}}, {{"name", "rpn.head"}, {"first", 1}, {"count", 1}}}},
             {"variants", {variant()}},
             {"table", {{{"size", 3}, {"sha256", "00"}}}}}}},
          {"class_names", {"background", "cat"}},
          {"golden", {{"absent", "switched off"}}},
          {"records", {{"constants/0", {{"sha256", "00"}, {"size", 3}, {"is_blob", true}}}}}};
}

json version_1() {
  json manifest = version_2();
  manifest["format_version"] = 1;
  manifest["segments"] = std::move(manifest["engines"]);
  manifest.erase("engines");
  manifest["segments"][0]["name"] = "backbone+rpn.head";
  manifest["verification"] = {{"tensors", {{{"segment", "backbone+rpn.head"}, {"output", "0"}}}}};
  return manifest;
}

json upgraded(const json& manifest) {
  return json::parse(hybrid_rt::upgraded_from_version_1(manifest.dump(), "old.pt"));
}

std::string refusal_of(const std::function<void(json&)>& change) {
  json manifest = version_2();
  change(manifest);
  return failure_of([&] { Manifest::from_json(manifest.dump(), "odd.pt"); }).what();
}

}  // namespace

TEST_CASE("a manifest is read") {
  const Manifest manifest = Manifest::from_json(version_2().dump(), "new.pt");
  REQUIRE(manifest.engines.size() == 1);
  CHECK(manifest.engines[0].segments() == Names{"backbone", "rpn.head"});
  CHECK(manifest.engines[0].name() == "backbone+rpn.head");
  CHECK(manifest.engines[0].members[1].first == 1);
  CHECK(manifest.engines[0].variants[0].backend == "torchscript");
  CHECK(manifest.engines[0].table[0].size == 3);
  CHECK(manifest.class_names == Names{"background", "cat"});
  CHECK(manifest.records.at("constants/0").is_blob);
  CHECK_FALSE(manifest.records.at("constants/0").is_golden);
  CHECK(manifest.golden.empty());
  CHECK(manifest.no_golden == "switched off");
}

TEST_CASE("class names and a golden sample may be missing") {
  json without = version_2();
  without.erase("class_names");
  without.erase("golden");
  const Manifest manifest = Manifest::from_json(without.dump(), "new.pt");
  CHECK(manifest.class_names.empty());
  CHECK(manifest.no_golden == "an older hybrid_rt made this file");
}

TEST_CASE("a label without a name is shown as its number") {
  const hybrid_rt::ClassNames names{"__background__", "person", ""};
  CHECK(hybrid_rt::class_text(1, names) == "person");
  for (const int label : {2, 3, -1, 1 << 30}) {
    CHECK(hybrid_rt::class_name(label, names).empty());
    CHECK(hybrid_rt::class_text(label, names) == std::to_string(label));
  }
}

TEST_CASE("unknown fields are ignored") {
  json further = version_2();
  further["colour"] = "green";
  further["engines"][0]["colour"] = 5;
  further["engines"][0]["variants"][0]["colour"] = json::array();
  CHECK_NOTHROW(Manifest::from_json(further.dump(), "new.pt"));
}

TEST_CASE("version 1 is read in the form of version 2") {
  const json manifest = upgraded(version_1());
  CHECK(manifest.at("format_version") == 2);
  CHECK_FALSE(manifest.contains("segments"));
  CHECK(manifest.at("engines") == version_2().at("engines"));
  CHECK(manifest.at("records") == version_2().at("records"));
  CHECK(manifest.at("verification").at("tensors").at(0) == json{{"engine", "backbone+rpn.head"}, {"output", "0"}});
}

TEST_CASE("version 1 without members has one member per engine") {
  json old = version_1();
  old["segments"][0].erase("members");
  old["segments"][0]["name"] = "backbone";
  CHECK(upgraded(old).at("engines").at(0).at("members") ==
        json::array({{{"name", "backbone"}, {"first", 0}, {"count", 2}}}));
}

TEST_CASE("version 1 joined the names of segments") {
  CHECK(hybrid_rt::segments_of_version_1("backbone") == Names{"backbone"});
  CHECK(hybrid_rt::segments_of_version_1("backbone+rpn.head") == Names{"backbone", "rpn.head"});
  CHECK(hybrid_rt::engine_name({"backbone", "rpn.head"}) == "backbone+rpn.head");
}

TEST_CASE("a damaged manifest of version 1 is refused") {
  json old = version_1();
  SUBCASE("segments of another type") { old["segments"] = 5; }
  SUBCASE("a segment of another type") { old["segments"] = {5}; }
  SUBCASE("no variants to count outputs of") {
    old["segments"][0].erase("members");
    old["segments"][0]["variants"] = json::array();
  }
  const hybrid_rt::Error error =
      failure_of([&] { Manifest::from_json(hybrid_rt::upgraded_from_version_1(old.dump(), "old.pt"), "old.pt"); });
  CHECK(error.kind() == hybrid_rt::ErrorKind::kBundle);
  CHECK(contains(error.what(), "old.pt, manifest"));
}

TEST_CASE("missing fields and fields of another type are named") {
  const std::vector<std::pair<std::function<void(json&)>, std::string>> cases{
      {[](json& manifest) { manifest.erase("engines"); }, "odd.pt, manifest: expected a list of engines, got"},
      {[](json& manifest) { manifest["engines"] = 5; }, "odd.pt, manifest: expected a list of engines, got"},
      {[](json& manifest) { manifest["engines"][0] = 5; }, "manifest, an engine: expected 'members', 'variants' and"},
      {[](json& manifest) { manifest["engines"][0].erase("members"); }, "manifest, an engine: expected 'members'"},
      {[](json& manifest) { manifest["engines"][0]["members"] = json::array(); },
       "an engine's members: expected at least one segment, got none."},
      {[](json& manifest) { manifest["engines"][0]["members"][0]["first"] = 1e308; }, "an engine: expected 'members'"},
      {[](json& manifest) { manifest["engines"][0]["variants"] = json::array(); }, "artifact specs: expected a JSON"},
      {[](json& manifest) { manifest["engines"][0]["table"] = 5; }, "table of blobs: expected a JSON array, got 5."},
      {[](json& manifest) { manifest["class_names"] = {1}; }, "manifest, class_names: expected a list of strings, got"},
      {[](json& manifest) { manifest.erase("records"); }, "manifest: expected 'records', got none."},
      {[](json& manifest) { manifest["records"]["constants/0"] = 5; }, "record 'constants/0': expected its SHA-256"},
  };
  for (const auto& [change, expected] : cases) {
    CAPTURE(expected);
    CHECK(contains(refusal_of(change), expected));
  }
}
