#include <sched.h>
#include <sys/utsname.h>

#include <fstream>
#include <sstream>

#include "common/platform/machine_facts.h"

namespace hybrid_rt::platform {
namespace {

/// Returns the first value of a key of /proc/cpuinfo; empty if there is none.
std::string cpuinfo(const std::string& key) {
  std::ifstream file("/proc/cpuinfo");
  for (std::string line; std::getline(file, line);) {
    const std::size_t colon = line.find(':');
    if (line.rfind(key, 0) != 0 || colon == std::string::npos) continue;
    const std::size_t first = line.find_first_not_of(" \t", colon + 1);
    return first == std::string::npos ? "" : line.substr(first);
  }
  return "";
}

}  // namespace

std::set<std::string> cpu_flags() {
  std::set<std::string> flags;
  std::ifstream cpu("/proc/cpuinfo");
  for (std::string line; std::getline(cpu, line);) {
    // x86 says "flags", ARM "Features".
    if (line.rfind("flags", 0) != 0 && line.rfind("Features", 0) != 0) continue;
    std::istringstream names(line.substr(line.find(':') + 1));
    for (std::string name; names >> name;) flags.insert(name);
    break;
  }
  return flags;
}

std::int64_t free_memory() {
  std::ifstream memory("/proc/meminfo");
  for (std::string line; std::getline(memory, line);) {
    if (line.rfind("MemAvailable:", 0) == 0) return std::stoll(line.substr(13)) * 1024;
  }
  return 0;
}

std::string processor_name() {
  const std::string name = cpuinfo("model name");
  if (!name.empty()) return name;
  const std::string part = cpuinfo("CPU part");  // Arm kernels report no name, but a part number
  return part.empty() ? "unknown" : "CPU implementer " + cpuinfo("CPU implementer") + ", part " + part;
}

std::string architecture() {
  utsname system{};
  return uname(&system) == 0 ? system.machine : "unknown";
}

std::int64_t usable_cpus() {
  cpu_set_t set;
  CPU_ZERO(&set);
  return sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : 0;
}

}  // namespace hybrid_rt::platform
