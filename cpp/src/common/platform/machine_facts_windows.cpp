#include <intrin.h>
#include <windows.h>

#include <array>
#include <bit>
#include <cstdint>
#include <cstring>

#include "common/platform/machine_facts.h"

namespace hybrid_rt::platform {
namespace {

enum Register { kEax, kEbx, kEcx, kEdx };

/// Support by the operating system that programs need to use an instruction set.
enum class Needs { kNothing, kAvx, kAvx512 };

struct Flag {
  int leaf;
  int subleaf;
  Register in;
  int bit;
  const char* name;
  Needs needs;
};

// Intel's manual, volume 2, CPUID; the names are those of Linux's arch/x86/include/asm/cpufeatures.h.
constexpr Flag kFlags[] = {
    {1, 0, kEdx, 26, "sse2", Needs::kNothing},
    {1, 0, kEcx, 0, "pni", Needs::kNothing},
    {1, 0, kEcx, 9, "ssse3", Needs::kNothing},
    {1, 0, kEcx, 12, "fma", Needs::kAvx},
    {1, 0, kEcx, 19, "sse4_1", Needs::kNothing},
    {1, 0, kEcx, 20, "sse4_2", Needs::kNothing},
    {1, 0, kEcx, 23, "popcnt", Needs::kNothing},
    {1, 0, kEcx, 28, "avx", Needs::kAvx},
    {1, 0, kEcx, 29, "f16c", Needs::kAvx},
    {7, 0, kEbx, 3, "bmi1", Needs::kNothing},
    {7, 0, kEbx, 5, "avx2", Needs::kAvx},
    {7, 0, kEbx, 8, "bmi2", Needs::kNothing},
    {7, 0, kEbx, 16, "avx512f", Needs::kAvx512},
    {7, 0, kEbx, 17, "avx512dq", Needs::kAvx512},
    {7, 0, kEbx, 28, "avx512cd", Needs::kAvx512},
    {7, 0, kEbx, 30, "avx512bw", Needs::kAvx512},
    {7, 0, kEbx, 31, "avx512vl", Needs::kAvx512},
    {7, 0, kEcx, 1, "avx512vbmi", Needs::kAvx512},
    {7, 0, kEcx, 11, "avx512_vnni", Needs::kAvx512},
    {7, 0, kEdx, 23, "avx512_fp16", Needs::kAvx512},
    {7, 1, kEax, 4, "avx_vnni", Needs::kAvx},
    {7, 1, kEax, 5, "avx512_bf16", Needs::kAvx512},
};

bool is_switched_on(Needs needs) {
  constexpr DWORD kAvx = 39;     // PF_AVX_INSTRUCTIONS_AVAILABLE, missing in older headers
  constexpr DWORD kAvx512 = 41;  // PF_AVX512F_INSTRUCTIONS_AVAILABLE
  if (needs == Needs::kAvx) return IsProcessorFeaturePresent(kAvx) != 0;
  return needs == Needs::kNothing || IsProcessorFeaturePresent(kAvx512) != 0;
}

}  // namespace

std::set<std::string> cpu_flags() {
  std::set<std::string> flags;
  std::array<int, 4> registers{};
  __cpuid(registers.data(), 0);
  const int last = registers[kEax];
  for (const Flag& flag : kFlags) {
    if (flag.leaf > last) continue;
    if (flag.subleaf > 0) {
      __cpuidex(registers.data(), flag.leaf, 0);
      if (registers[kEax] < flag.subleaf) continue;
    }
    __cpuidex(registers.data(), flag.leaf, flag.subleaf);
    const bool is_there = (static_cast<unsigned>(registers[static_cast<std::size_t>(flag.in)]) >> flag.bit & 1U) != 0;
    if (is_there && is_switched_on(flag.needs)) flags.insert(flag.name);
  }
  return flags;
}

std::int64_t free_memory() {
  MEMORYSTATUSEX status{};
  status.dwLength = sizeof status;
  return GlobalMemoryStatusEx(&status) != 0 ? static_cast<std::int64_t>(status.ullAvailPhys) : 0;
}

std::string processor_name() {
  constexpr int kFirst = static_cast<int>(0x80000002);  // three leaves of 16 bytes of text each
  std::array<int, 4> registers{};
  __cpuid(registers.data(), static_cast<int>(0x80000000));
  if (static_cast<unsigned>(registers[kEax]) < static_cast<unsigned>(kFirst) + 2) return "unknown";
  std::array<char, 49> name{};
  for (std::size_t i = 0; i < 3; ++i) {
    __cpuid(registers.data(), kFirst + static_cast<int>(i));
    std::memcpy(name.data() + 16 * i, registers.data(), 16);
  }
  const std::string text = name.data();
  const std::size_t first = text.find_first_not_of(' ');
  return first == std::string::npos ? "unknown" : text.substr(first, text.find_last_not_of(' ') + 1 - first);
}

std::string architecture() {
  SYSTEM_INFO system{};
  GetNativeSystemInfo(&system);
  constexpr WORD kArm64 = 12;  // PROCESSOR_ARCHITECTURE_ARM64, missing in older headers
  if (system.wProcessorArchitecture == PROCESSOR_ARCHITECTURE_AMD64) return "x86_64";
  return system.wProcessorArchitecture == kArm64 ? "aarch64" : "unknown";
}

std::int64_t usable_cpus() {
  DWORD_PTR own = 0;
  DWORD_PTR all = 0;
  if (GetProcessAffinityMask(GetCurrentProcess(), &own, &all) == 0) return 0;
  return std::popcount(static_cast<std::uint64_t>(own));
}

}  // namespace hybrid_rt::platform
