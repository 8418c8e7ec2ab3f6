#include "spec/latency.h"

#include <doctest/doctest.h>

#include <nlohmann/json.hpp>
#include <numeric>
#include <string>
#include <vector>

#include "failure_of.h"

namespace {

using hybrid_rt::LatencyCheck;
using hybrid_rt::LatencyContract;
using hybrid_rt::MachineDescription;
using hybrid_rt::SizeLatency;
using nlohmann::json;

json size_entry() { return {{"height", 32}, {"width", 48}, {"count", 100}, {"p50", 4.0}, {"p95", 5.0}, {"p99", 6.0}}; }

json manifest() {
  return {{"latency_contract",
           {{"machine", {{"processor", "A CPU"}, {"architecture", "x86_64"}, {"cpus", 2}, {"gpu", ""}}},
            {"device", "cpu"},
            {"threads", 2},
            {"engines", {{"backbone", "openvino:fp32"}}},
            {"input", "golden sample"},
            {"measured", "2026-01-01T00:00:00+00:00"},
            {"sizes", {size_entry()}}}}};
}

template <class Call>
std::string message_of(Call&& call) {
  return failure_of(call).what();
}

std::string refusal_of(const json& changed) {
  return message_of([&] { LatencyContract::from_manifest(changed.dump(), "a.pt"); });
}

std::vector<double> up_to(size_t count) {
  std::vector<double> values(count);
  std::iota(values.rbegin(), values.rend(), 1.0);  // they come in any order
  return values;
}

}  // namespace

TEST_CASE("a percentile is the smallest time that this share of the calls does not exceed") {
  const SizeLatency latency = SizeLatency::of(32, 48, up_to(200));
  CHECK(latency.count == 200);
  CHECK(latency.p50 == 100);
  CHECK(latency.p95 == 190);
  CHECK(latency.p99 == 198);
}

TEST_CASE("fewer than 100 calls have no 99th percentile, and fewer than 20 none at all") {
  CHECK_FALSE(SizeLatency::of(1, 1, up_to(99)).p99.has_value());
  CHECK(SizeLatency::of(1, 1, up_to(20)).p95 == 19);
  CHECK(message_of([] { SizeLatency::of(1, 1, up_to(19)); }) ==
        "hybrid_rt[latency]: repeat: expected at least 20 timed calls, got 19.");
}

TEST_CASE("a contract is read from a manifest") {
  const LatencyContract contract = LatencyContract::from_manifest(manifest().dump(), "a.pt");
  CHECK(to_string(contract.machine) == "A CPU, x86_64, 2 CPUs");
  CHECK(contract.threads == 2);
  CHECK(contract.engines.at("backbone") == "openvino:fp32");
  REQUIRE(contract.sizes.size() == 1);
  CHECK(contract.sizes[0].width == 48);
  CHECK(contract.sizes[0].p99 == 6.0);
  json few = manifest();
  few["latency_contract"]["sizes"][0]["p99"] = nullptr;
  CHECK_FALSE(LatencyContract::from_manifest(few.dump(), "a.pt").sizes[0].p99.has_value());
}

TEST_CASE("a manifest without a contract says how to measure one") {
  CHECK(refusal_of(json::object()) ==
        "hybrid_rt[bundle]: a.pt: expected a latency contract, got none. Measure one on the target machine: "
        "hybrid-rt measure FILE, or convert with latency_contract=True.");
  CHECK(message_of([] { LatencyContract::from_manifest("[1]", "a.pt"); }).find("a latency contract") !=
        std::string::npos);
}

TEST_CASE("values that no measurement can have are refused") {
  const auto refused = [](const std::string& pointer, const json& value, const std::string& text) {
    json changed = manifest();
    changed[json::json_pointer("/latency_contract" + pointer)] = value;
    const std::string refusal = refusal_of(changed);
    CHECK_MESSAGE(refusal.find(text) != std::string::npos, pointer << ": " << refusal);
  };
  refused("", 1, "manifest, latency_contract: expected an object, got 1.");
  refused("/sizes/0/p50", -1.0, "latency_contract.sizes[0].p50: expected milliseconds above 0");
  refused("/sizes/0/p50", 0, "sizes[0].p50: expected milliseconds above 0");
  refused("/sizes/0/p95", 3.0,
          "sizes[0].p95: expected milliseconds above 0, and at least the percentile before, got 3.0");
  refused("/sizes/0/p99", "fast", "sizes[0].p99: expected a number of milliseconds, got \"fast\"");
  refused("/sizes/0/p95", nullptr, "sizes[0].p95: expected a number of milliseconds, got null");  // NaN in JSON
  refused("/sizes/0/count", 3, "sizes[0].count: expected an integer from 20 to 1000000, got 3");
  refused("/sizes/0/height", 1LL << 40, "sizes[0].height: expected an integer from 1 to 16384");
  refused("/sizes/0/width", 1.5, "sizes[0].width: expected an integer");
  refused("/sizes", json::array(), "sizes: expected a list of 1 to 64 objects");
  refused("/threads", 0, "threads: expected an integer from 1 to 1024, got 0");
  refused("/machine/cpus", "two", "machine.cpus: expected an integer");
  refused("/engines/backbone", 1, "engines.backbone: expected a text, got 1");
  json missing = manifest();
  missing["latency_contract"].erase("machine");
  CHECK(refusal_of(missing).find("latency_contract: expected a field 'machine', got none") != std::string::npos);
}

TEST_CASE("a percentile above the tolerance breaks the contract") {
  const LatencyContract contract = LatencyContract::from_manifest(manifest().dump(), "a.pt");
  LatencyContract here = contract;
  here.sizes = {{.height = 32, .width = 48, .count = 100, .p50 = 5, .p95 = 6.25, .p99 = 7.5}};
  CHECK(compare_latency(contract, here, 0.25).holds());
  here.sizes = {{.height = 32, .width = 48, .count = 100, .p50 = 4, .p95 = 6.5, .p99 = 9}};
  const LatencyCheck check = compare_latency(contract, here, 0.25);
  REQUIRE(check.failures.size() == 2);
  CHECK(check.failures[0] == "32x48: p95 6.500 ms, 30 % above the contract's 5.000 ms (allowed: 25 %)");
  CHECK(check.failures[1] == "32x48: p99 9.000 ms, 50 % above the contract's 6.000 ms (allowed: 25 %)");
  CHECK(check.notes.empty());
  const json document = json::parse(to_json(check));
  CHECK(document.at("holds") == false);
  CHECK(document.at("sizes").at(0).at("found").at("p95") == 6.5);
  CHECK(document.at("sizes").at(0).at("promised").at("p95") == 5.0);
}

TEST_CASE("a 99th percentile that is missing on one side is not compared") {
  const LatencyContract contract = LatencyContract::from_manifest(manifest().dump(), "a.pt");
  LatencyContract here = contract;
  here.sizes = {{.height = 32, .width = 48, .count = 20, .p50 = 4, .p95 = 5}};
  CHECK(compare_latency(contract, here, 0).holds());
}

TEST_CASE("conditions that differ from the contract's are reported") {
  const LatencyContract contract = LatencyContract::from_manifest(manifest().dump(), "a.pt");
  LatencyContract here = contract;
  here.machine.cpus = 1;
  here.threads = 1;
  here.input = "own inputs";
  here.engines["backbone"] = "torchscript:fp32";
  here.engines["rpn.head"] = "torchscript:fp32";
  const std::vector<std::string> expected{
      "measured on another machine: A CPU, x86_64, 2 CPUs, here A CPU, x86_64, 1 CPU",
      "measured with 2 threads, here 1 thread",
      "measured on the golden sample, here own inputs",
      "measured with engine backbone on openvino:fp32, here torchscript:fp32",
      "measured with engine rpn.head on no such engine, here torchscript:fp32",
  };
  CHECK(compare_latency(contract, here, 0).notes == expected);
}

TEST_CASE("options and sizes that do not fit are refused") {
  const LatencyContract contract = LatencyContract::from_manifest(manifest().dump(), "a.pt");
  CHECK(chosen_sizes(contract, {}).size() == 1);
  CHECK(chosen_sizes(contract, {.sizes = {{32, 48}}}).size() == 1);
  CHECK(message_of([&] { chosen_sizes(contract, {.sizes = {{48, 32}}}); }) ==
        "hybrid_rt[latency]: sizes: expected sizes in the contract: 32x48, got 48x32. Measure that size: hybrid-rt "
        "measure FILE --sizes 48x32.");
  CHECK(message_of([] { hybrid_rt::check_latency_options({.tolerance = -0.1}); }).find("tolerance") !=
        std::string::npos);
  CHECK(message_of([] { hybrid_rt::check_latency_options({.repeat = 19}); }).find("20 to 1000000") !=
        std::string::npos);
}

TEST_CASE("this machine has a description") {
  const MachineDescription here = MachineDescription::here();
  CHECK_FALSE(here.processor.empty());
  CHECK(here.cpus >= 1);
  CHECK(here == MachineDescription::here());
  CHECK(here.gpu.empty());
}
