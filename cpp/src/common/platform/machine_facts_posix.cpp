#include <fstream>
#include <sstream>

#include "common/platform/machine_facts.h"

namespace hybrid_rt::platform {

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

}  // namespace hybrid_rt::platform
