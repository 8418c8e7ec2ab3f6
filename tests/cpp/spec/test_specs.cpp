#include "hybrid_rt/specs.h"

#include <doctest/doctest.h>

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "failure_of.h"

namespace {

using hybrid_rt::ArtifactSpec;
using hybrid_rt::Error;
using hybrid_rt::ErrorKind;
using hybrid_rt::TensorSpec;
using nlohmann::json;

json valid_specs() {
  return json::parse(R"([{
    "backend": "openvino", "precision": "bf16", "device": "cpu",
    "inputs": [{"name": "x", "dtype": "float32", "min": [1, 3, 32], "opt": [1, 3, 64], "max": [8, 3, -1]}],
    "outputs": [{"name": "0", "dtype": "int64", "min": [], "opt": [], "max": []}],
    "blobs": [{"name": "xml", "pieces": [[0, 0, 10]], "size": 10, "sha256": "aa"},
              {"name": "weights", "pieces": [[1, 8, 1], [2, 0, 4999999999]], "size": 5000000000,
               "sha256": "bb"}],
    "requirements": {"openvino": ">=2024.0"}, "versions": {"torch": "2.15.0"}}])");
}

Error failure_of_json(const json& value) {
  return failure_of([&] { ArtifactSpec::list_from_json(value.dump()); });
}

}  // namespace

TEST_CASE("specs are read with all their fields") {
  const auto specs = ArtifactSpec::list_from_json(valid_specs().dump());
  REQUIRE(specs.size() == 1);
  const ArtifactSpec& spec = specs[0];
  CHECK(spec.backend == "openvino");
  CHECK(spec.precision == "bf16");
  CHECK(spec.device == "cpu");
  REQUIRE(spec.inputs.size() == 1);
  CHECK(spec.inputs[0].name == "x");
  CHECK((spec.inputs[0].dtype == c10::ScalarType::Float));
  CHECK(spec.inputs[0].min == std::vector<int64_t>{1, 3, 32});
  CHECK(spec.inputs[0].opt == std::vector<int64_t>{1, 3, 64});
  CHECK(spec.inputs[0].max == std::vector<int64_t>{8, 3, TensorSpec::kUnbounded});
  REQUIRE(spec.outputs.size() == 1);
  CHECK((spec.outputs[0].dtype == c10::ScalarType::Long));
  REQUIRE(spec.blobs.size() == 2);
  REQUIRE(spec.blob("weights").pieces.size() == 2);
  CHECK(spec.blob("weights").pieces[0].offset == 8);
  CHECK(spec.blob("weights").pieces[1].index == 2);
  CHECK(spec.blob("weights").pieces[1].size == 4999999999);
  CHECK(spec.blob("weights").size == 5000000000);
  CHECK(spec.blob("weights").sha256 == "bb");
  CHECK(spec.requirements.at("openvino") == ">=2024.0");
  CHECK(spec.versions.at("torch") == "2.15.0");
}

TEST_CASE("fields of a later version are ignored") {
  json value = valid_specs();
  value[0]["something_new"] = {1, 2};
  CHECK(ArtifactSpec::list_from_json(value.dump()).size() == 1);
}

TEST_CASE("every dtype that a segment may take or return is read") {
  for (const char* name : {"float32", "float64", "float16", "bfloat16", "int64", "int32", "int8", "uint8", "bool"}) {
    CAPTURE(name);
    json value = valid_specs();
    value[0]["outputs"][0]["dtype"] = name;
    CHECK(contains(to_string(ArtifactSpec::list_from_json(value.dump())[0].outputs[0]), name));
  }
}

TEST_CASE("a missing field is named") {
  const json fields = valid_specs()[0];
  for (const auto& [name, ignored] : fields.items()) {
    CAPTURE(name);
    json value = valid_specs();
    value[0].erase(name);
    const Error error = failure_of_json(value);
    CHECK(error.kind() == ErrorKind::kBundle);
    CHECK(contains(error.what(), "hybrid_rt[bundle]: artifact spec: expected a field '" + name + "', got none."));
  }
  for (const char* name : {"name", "dtype", "min", "opt", "max"}) {
    CAPTURE(name);
    json value = valid_specs();
    value[0]["inputs"][0].erase(name);
    CHECK(contains(failure_of_json(value).what(), std::string("expected a field '") + name + "'"));
  }
  for (const char* name : {"name", "pieces", "size", "sha256"}) {
    CAPTURE(name);
    json value = valid_specs();
    value[0]["blobs"][0].erase(name);
    CHECK(contains(failure_of_json(value).what(), std::string("expected a field '") + name + "'"));
  }
}

TEST_CASE("a field of another type is named") {
  const json fields = valid_specs()[0];
  for (const auto& [name, ignored] : fields.items()) {
    CAPTURE(name);
    json value = valid_specs();
    value[0][name] = 5;
    CHECK(contains(failure_of_json(value).what(), "field '" + name + "': expected another type, got 5."));
  }
  json value = valid_specs();
  value[0]["inputs"][0]["min"] = {"1", "3"};
  CHECK(contains(failure_of_json(value).what(), "field 'min'"));
}

TEST_CASE("a number that is not a 64-bit integer is refused") {
  for (const json& number : {json(1e308), json(2.5), json(uint64_t{1} << 63), json(true)}) {
    CAPTURE(number.dump());
    json value = valid_specs();
    value[0]["inputs"][0]["max"][0] = number;
    CHECK(contains(failure_of_json(value).what(), "field 'max': expected another type"));
    value = valid_specs();
    value[0]["blobs"][0]["size"] = number;
    CHECK(contains(failure_of_json(value).what(), "field 'size': expected another type"));
  }
}

TEST_CASE("text that is not a list of specs is refused") {
  for (const char* text : {"", "{", "{}", "[]", "null", "[1]", "[[]]"}) {
    CAPTURE(text);
    CHECK(failure_of([&] { ArtifactSpec::list_from_json(text); }).kind() == ErrorKind::kBundle);
  }
}

TEST_CASE("a dtype that torch does not have is refused") {
  json value = valid_specs();
  value[0]["inputs"][0]["dtype"] = "float24";
  CHECK(contains(failure_of_json(value).what(), "tensor 'x': expected a dtype of torch, got 'float24'."));
}

TEST_CASE("shapes of different lengths are refused") {
  for (const char* name : {"min", "opt", "max"}) {
    CAPTURE(name);
    json value = valid_specs();
    value[0]["inputs"][0][name] = {1, 3};
    CHECK(contains(failure_of_json(value).what(), "tensor 'x': expected min, opt and max of equal length"));
  }
}

TEST_CASE("a missing blob is named") {
  const ArtifactSpec spec = ArtifactSpec::list_from_json(valid_specs().dump())[0];
  const Error error = failure_of([&] { spec.blob("engine"); });
  CHECK(contains(error.what(), "artifact of openvino: expected a blob named 'engine', got none."));
}

TEST_CASE("a spec's text shows fixed, bounded and free sizes") {
  CHECK(to_string(TensorSpec{"x", c10::ScalarType::Float, {1, 3, 32}, {1, 3, 64}, {8, 3, -1}}) ==
        "1..8x3x32.. float32");
  CHECK(to_string(TensorSpec{"x", c10::ScalarType::Bool, {}, {}, {}}) == "scalar bool");
}
