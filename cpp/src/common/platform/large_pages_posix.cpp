#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>

#include "common/platform/large_pages.h"

namespace hybrid_rt::platform {

void ask_for_large_pages(void* memory, std::size_t size) {
#ifdef MADV_HUGEPAGE
  const auto page = static_cast<std::uintptr_t>(sysconf(_SC_PAGESIZE));
  const auto address = reinterpret_cast<std::uintptr_t>(memory);
  const std::uintptr_t begin = (address + page - 1) / page * page;
  const std::uintptr_t end = (address + size) / page * page;
  // A system that refuses uses small pages, which only takes longer.
  if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#else
  static_cast<void>(memory);
  static_cast<void>(size);
#endif
}

}  // namespace hybrid_rt::platform
