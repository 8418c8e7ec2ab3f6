#include "spec/latency.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <nlohmann/json.hpp>

#include "common/damaged.h"
#include "common/json_text.h"
#include "common/platform/machine_facts.h"
#include "hybrid_rt/error.h"
#include "hybrid_rt/machine.h"

namespace hybrid_rt {
namespace {

using Json = nlohmann::ordered_json;

constexpr size_t kFewest = 20;         ///< calls; with fewer, the 95th percentile is the slowest one
constexpr size_t kFewestForP99 = 100;  ///< the same for the 99th
constexpr int64_t kMostCalls = 1'000'000;
constexpr int64_t kLongestSide = 16384;
constexpr size_t kMostSizes = 64;
constexpr int64_t kMostThreads = 1024;
constexpr char kField[] = "latency_contract";

constexpr std::array kPercentiles{"p50", "p95", "p99"};

std::optional<double> value_of(const SizeLatency& latency, const std::string& name) {
  if (name == "p50") return latency.p50;
  return name == "p95" ? std::optional<double>(latency.p95) : latency.p99;
}

std::string size_text(int64_t height, int64_t width) { return std::to_string(height) + "x" + std::to_string(width); }

std::string fixed(double value, int digits) {
  std::array<char, 400> text{};
  std::snprintf(text.data(), text.size(), "%.*f", digits, value);
  return text.data();
}

double percentile_of(const std::vector<double>& ordered, double percent) {
  const double rank = std::ceil(static_cast<double>(ordered.size()) * percent / 100);
  return ordered[static_cast<size_t>(std::max(1.0, rank)) - 1];
}

/// Reads the fields of the manifest's entry; every refusal names the field.
class Reader {
 public:
  Reader(const nlohmann::json& values, std::string path, std::string where)
      : values_(values), path_(std::move(path)), where_(std::move(where)) {
    if (!values.is_object()) throw refused(where_, "an object", shown(values));
  }

  std::string text(const std::string& name) const {
    const auto& value = at(name);
    if (!value.is_string()) throw refusal(name, "a text", value);
    return value.get<std::string>();
  }

  int64_t integer(const std::string& name, int64_t least, int64_t most) const {
    const auto& value = at(name);
    const bool is_right = value.is_number_integer() && value >= least && value <= most;
    if (!is_right) {
      throw refusal(name, "an integer from " + std::to_string(least) + " to " + std::to_string(most), value);
    }
    return value.get<int64_t>();
  }

  /// Reads finite milliseconds of at least `least`.
  double milliseconds(const std::string& name, double least) const {
    const auto& value = at(name);
    if (!value.is_number()) throw refusal(name, "a number of milliseconds", value);
    const auto number = value.get<double>();
    if (!std::isfinite(number) || number <= 0 || number < least) {
      throw refusal(name, "milliseconds above 0, and at least the percentile before", value);
    }
    return number;
  }

  bool is_null(const std::string& name) const { return !values_.contains(name) || values_.at(name).is_null(); }

  Reader object(const std::string& name) const { return {at(name), path_, inner(name)}; }

  std::vector<Reader> objects(const std::string& name) const {
    const auto& value = at(name);
    if (!value.is_array() || value.empty() || value.size() > kMostSizes) {
      throw refusal(name, "a list of 1 to " + std::to_string(kMostSizes) + " objects", value);
    }
    std::vector<Reader> found;
    for (size_t i = 0; i < value.size(); ++i) {
      found.emplace_back(value[i], path_, inner(name) + "[" + std::to_string(i) + "]");
    }
    return found;
  }

  std::map<std::string, std::string> texts(const std::string& name) const {
    std::map<std::string, std::string> found;
    for (const auto& [key, value] : object(name).values_.items()) found[key] = object(name).text(key);
    return found;
  }

 private:
  const nlohmann::json& at(const std::string& name) const {
    const auto found = values_.find(name);
    if (found == values_.end()) throw refused(where_, "a field '" + name + "'", "none");
    return *found;
  }

  std::string inner(const std::string& name) const { return where_.empty() ? name : where_ + "." + name; }

  Error refused(const std::string& where, const std::string& expected, const std::string& got) const {
    return damaged_manifest(path_, kField + (where.empty() ? "" : "." + where), expected, got);
  }

  Error refusal(const std::string& name, const std::string& expected, const nlohmann::json& value) const {
    return refused(inner(name), expected, shown(value));
  }

  const nlohmann::json& values_;
  std::string path_;
  std::string where_;
};

SizeLatency size_from(const Reader& entry) {
  SizeLatency latency;
  latency.height = entry.integer("height", 1, kLongestSide);
  latency.width = entry.integer("width", 1, kLongestSide);
  latency.count = entry.integer("count", static_cast<int64_t>(kFewest), kMostCalls);
  latency.p50 = entry.milliseconds("p50", 0);
  latency.p95 = entry.milliseconds("p95", latency.p50);
  if (!entry.is_null("p99")) latency.p99 = entry.milliseconds("p99", latency.p95);
  return latency;
}

Json json_of(const MachineDescription& machine) {
  return {{"processor", machine.processor},
          {"architecture", machine.architecture},
          {"cpus", machine.cpus},
          {"gpu", machine.gpu}};
}

Json json_of(const SizeLatency& latency) {
  return {{"height", latency.height}, {"width", latency.width},
          {"count", latency.count},   {"p50", latency.p50},
          {"p95", latency.p95},       {"p99", latency.p99 ? Json(*latency.p99) : Json(nullptr)}};
}

const SizeLatency& promised_for(const LatencyContract& contract, int64_t height, int64_t width) {
  std::string known;
  for (const SizeLatency& each : contract.sizes) {
    if (each.height == height && each.width == width) return each;
    known += (known.empty() ? "" : ", ") + size_text(each.height, each.width);
  }
  throw Error(ErrorKind::kOption, "latency", "sizes", "sizes in the contract: " + known, size_text(height, width),
              "Measure that size: hybrid-rt measure FILE --sizes " + size_text(height, width) + ".");
}

/// Adds a failure for each percentile that is too high.
void add_size(LatencyCheck& check, const SizeLatency& promised, const SizeLatency& found) {
  check.sizes.push_back({promised, found});
  for (const std::string name : kPercentiles) {
    const auto limit = value_of(promised, name);
    const auto here = value_of(found, name);
    if (!limit || !here || *here <= *limit * (1 + check.tolerance)) continue;
    check.failures.push_back(size_text(promised.height, promised.width) + ": " + name + " " + fixed(*here, 3) +
                             " ms, " + fixed(100 * (*here / *limit - 1), 0) + " % above the contract's " +
                             fixed(*limit, 3) + " ms (allowed: " + fixed(100 * check.tolerance, 0) + " %)");
  }
}

/// Adds a note for each condition that differs from the contract's.
void add_notes(LatencyCheck& check, const LatencyContract& contract, const LatencyContract& here) {
  const auto note = [&](const std::string& what, const std::string& then, const std::string& now) {
    if (then != now) check.notes.push_back("measured " + what + " " + then + ", here " + now);
  };
  const auto threads = [](int64_t count) { return std::to_string(count) + (count == 1 ? " thread" : " threads"); };
  note("on another machine:", to_string(contract.machine), to_string(here.machine));
  note("on device", contract.device, here.device);
  note("with", threads(contract.threads), threads(here.threads));
  note("on the", contract.input, here.input);
  for (const auto& [name, variant] : here.engines) {
    const auto found = contract.engines.find(name);
    note("with engine " + name + " on", found == contract.engines.end() ? "no such engine" : found->second, variant);
  }
}

}  // namespace

MachineDescription MachineDescription::here(int64_t gpu) {
  MachineDescription machine{.processor = platform::processor_name(),
                             .architecture = platform::architecture(),
                             .cpus = platform::usable_cpus()};
  if (gpu >= 0) {
    const std::vector<CudaDevice> devices = Machine::here().cuda_devices;
    if (static_cast<size_t>(gpu) < devices.size()) machine.gpu = devices[static_cast<size_t>(gpu)].name;
  }
  return machine;
}

std::string to_string(const MachineDescription& machine) {
  const std::string gpu = machine.gpu.empty() ? "" : machine.gpu + ", ";
  const std::string cpus = std::to_string(machine.cpus) + (machine.cpus == 1 ? " CPU" : " CPUs");
  return gpu + machine.processor + ", " + machine.architecture + ", " + cpus;
}

SizeLatency SizeLatency::of(int64_t height, int64_t width, std::vector<double> milliseconds) {
  if (milliseconds.size() < kFewest) {
    throw Error(ErrorKind::kOption, "latency", "repeat", "at least " + std::to_string(kFewest) + " timed calls",
                std::to_string(milliseconds.size()), "");
  }
  std::sort(milliseconds.begin(), milliseconds.end());
  SizeLatency latency{.height = height, .width = width, .count = static_cast<int64_t>(milliseconds.size())};
  latency.p50 = percentile_of(milliseconds, 50);
  latency.p95 = percentile_of(milliseconds, 95);
  if (milliseconds.size() >= kFewestForP99) latency.p99 = percentile_of(milliseconds, 99);
  return latency;
}

LatencyContract LatencyContract::from_manifest(const std::string& manifest, const std::string& path) {
  const auto parsed = parse_json(manifest);
  const auto found = parsed.is_object() ? parsed.find(kField) : parsed.end();
  if (!parsed.is_object() || found == parsed.end() || found->is_null()) {
    throw Error(ErrorKind::kBundle, "bundle", path, "a latency contract", "none",
                "Measure one on the target machine: hybrid-rt measure FILE, or convert with "
                "latency_contract=True.");
  }
  const Reader entry(*found, path, "");
  const Reader machine = entry.object("machine");
  LatencyContract contract;
  contract.machine = {.processor = machine.text("processor"),
                      .architecture = machine.text("architecture"),
                      .cpus = machine.integer("cpus", 0, 1 << 20),
                      .gpu = machine.text("gpu")};
  contract.device = entry.text("device");
  contract.threads = entry.integer("threads", 1, kMostThreads);
  contract.engines = entry.texts("engines");
  contract.input = entry.text("input");
  contract.measured = entry.text("measured");
  for (const Reader& size : entry.objects("sizes")) contract.sizes.push_back(size_from(size));
  return contract;
}

void check_latency_options(const LatencyOptions& options) {
  if (!std::isfinite(options.tolerance) || options.tolerance < 0) {
    throw Error(ErrorKind::kOption, "latency", "tolerance", "a fraction of at least 0", fixed(options.tolerance, 3),
                "");
  }
  const bool is_in_range = options.repeat >= static_cast<int64_t>(kFewest) && options.repeat <= kMostCalls;
  if (options.repeat != 0 && !is_in_range) {
    throw Error(ErrorKind::kOption, "latency", "repeat",
                std::to_string(kFewest) + " to " + std::to_string(kMostCalls) + " timed calls",
                std::to_string(options.repeat), "");
  }
}

std::vector<SizeLatency> chosen_sizes(const LatencyContract& contract, const LatencyOptions& options) {
  if (options.sizes.empty()) return contract.sizes;
  std::vector<SizeLatency> chosen;
  for (const auto& [height, width] : options.sizes) chosen.push_back(promised_for(contract, height, width));
  return chosen;
}

LatencyCheck compare_latency(const LatencyContract& contract, const LatencyContract& here, double tolerance) {
  LatencyCheck check{.machine = here.machine, .measured_on = contract.machine, .tolerance = tolerance};
  for (const SizeLatency& found : here.sizes) {
    add_size(check, promised_for(contract, found.height, found.width), found);
  }
  add_notes(check, contract, here);
  return check;
}

std::string to_json(const LatencyCheck& check) {
  Json document = {{"holds", check.holds()},
                   {"tolerance", check.tolerance},
                   {"machine", json_of(check.machine)},
                   {"measured_on", json_of(check.measured_on)}};
  document["sizes"] = Json::array();
  for (const SizeComparison& size : check.sizes) {
    document["sizes"].push_back({{"promised", json_of(size.promised)}, {"found", json_of(size.found)}});
  }
  document["failures"] = check.failures;
  document["notes"] = check.notes;
  return document.dump(-1, ' ', false, Json::error_handler_t::replace);
}

}  // namespace hybrid_rt
