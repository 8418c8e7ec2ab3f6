#include "hybrid_rt/machine.h"

#include <algorithm>
#include <charconv>
#include <sstream>
#include <vector>

#include "common/platform/machine_facts.h"
#include "spec/cuda_devices.h"

namespace hybrid_rt {
namespace {

std::vector<std::string> split(const std::string& text, char separator) {
  std::vector<std::string> parts;
  std::istringstream stream(text);
  for (std::string part; std::getline(stream, part, separator);) {
    const size_t first = part.find_first_not_of(" \t");
    if (first == std::string::npos) continue;
    parts.push_back(part.substr(first, part.find_last_not_of(" \t") - first + 1));
  }
  return parts;
}

/// Returns {2, 15, 0} for "2.15.0+cu132". Text after the numbers is ignored.
std::vector<int64_t> numbers_of(const std::string& version) {
  std::vector<int64_t> numbers;
  for (const std::string& part : split(version, '.')) {
    int64_t number = 0;
    const auto [end, failed] = std::from_chars(part.data(), part.data() + part.size(), number);
    if (failed != std::errc()) break;
    numbers.push_back(number);
    if (end != part.data() + part.size()) break;
  }
  return numbers;
}

/// Returns a number below zero if `a` is older. Missing numbers count as 0.
int compare(std::vector<int64_t> a, std::vector<int64_t> b) {
  const size_t length = std::max(a.size(), b.size());
  a.resize(length);
  b.resize(length);
  return a < b ? -1 : a == b ? 0 : 1;
}

/// Returns why no device has a required compute capability. `wanted` is "8.6,8.9", or ">=8.0".
std::optional<std::string> unmet_capability(const std::string& wanted, const Machine& machine, size_t cuda_index) {
  if (cuda_index >= machine.cuda_devices.size()) return "there is no CUDA device " + std::to_string(cuda_index);
  const CudaDevice& device = machine.cuda_devices[cuda_index];
  bool is_right = false;
  if (wanted.starts_with(">")) {
    is_right = is_in_range(device.capability, wanted).value_or(false);
  } else {
    const std::vector<std::string> capabilities = split(wanted, ',');
    is_right = std::find(capabilities.begin(), capabilities.end(), device.capability) != capabilities.end();
  }
  if (is_right) return std::nullopt;
  return "it was built for GPUs of compute capability " + wanted + ", but " + device.name + " has capability " +
         device.capability + "; convert the detector for that one, or run another variant";
}

}  // namespace

Machine Machine::here() {
  static const std::set<std::string> cpu_flags = platform::cpu_flags();
  Machine machine;
  machine.cpu_flags = cpu_flags;
  const CudaDevices& cuda = hybrid_rt::cuda_devices();  // the function, not the member
  machine.cuda_devices = cuda.devices;
  machine.no_cuda_reason = cuda.reason;
  machine.free_memory = platform::free_memory();
  return machine;
}

std::optional<bool> is_in_range(const std::string& version, const std::string& range) {
  for (const std::string& bound : split(range, ',')) {
    const size_t digits = bound.find_first_of("0123456789");
    const std::string relation = bound.substr(0, digits == std::string::npos ? bound.size() : digits);
    if (digits == std::string::npos) return std::nullopt;
    const int order = compare(numbers_of(version), numbers_of(bound.substr(digits)));
    if (relation == ">="   ? order < 0
        : relation == ">"  ? order <= 0
        : relation == "<"  ? order >= 0
        : relation == "<=" ? order > 0
        : relation == "==" ? order != 0
                           : true) {
      if (relation != ">=" && relation != ">" && relation != "<" && relation != "<=" && relation != "==") {
        return std::nullopt;
      }
      return false;
    }
  }
  return true;
}

std::optional<std::string> unmet(const ArtifactSpec& spec, const std::string& runtime_version, const Machine& machine,
                                 size_t cuda_index) {
  if (spec.device == "cuda" && machine.cuda_devices.empty()) {
    return "it was compiled for a CUDA device, and there is none: " + machine.no_cuda_reason;
  }
  for (const auto& [name, wanted] : spec.requirements) {
    if (name == "version") {
      if (runtime_version.empty()) continue;
      const auto is_right = is_in_range(runtime_version, wanted);
      if (!is_right)
        return "its requirement \"version\": \"" + wanted + "\" is not a range; convert the detector again";
      if (!*is_right) {
        return "it needs " + spec.backend + " " + wanted + ", but " + runtime_version +
               " is installed; install a version in that range, or convert the detector again with this one";
      }
    } else if (name == "cpu") {
      std::string missing;
      for (const std::string& flag : split(wanted, ',')) {
        if (!machine.cpu_flags.contains(flag)) missing += (missing.empty() ? "" : ", ") + flag;
      }
      if (!missing.empty()) {
        return "it was compiled for a CPU with " + missing +
               ", which this one lacks; convert the detector on a CPU like this one, or run another variant";
      }
    } else if (name == "compute_capability") {
      if (auto reason = unmet_capability(wanted, machine, cuda_index)) return reason;
    } else if (name == "memory") {
      int64_t bytes = 0;
      std::from_chars(wanted.data(), wanted.data() + wanted.size(), bytes);
      if (bytes > machine.free_memory) {
        return "it needs " + std::to_string(bytes >> 20) + " MiB of memory, " +
               std::to_string(machine.free_memory >> 20) + " are free; end other programs, or run another variant";
      }
    }
  }
  return std::nullopt;
}

}  // namespace hybrid_rt
