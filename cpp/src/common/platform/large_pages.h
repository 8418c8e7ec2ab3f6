#pragma once

#include <cstddef>

namespace hybrid_rt::platform {

/// Asks the system for large pages for memory that is written next. Memory that was written before, and systems
/// without large pages, are left as they are.
void ask_for_large_pages(void* memory, std::size_t size);

}  // namespace hybrid_rt::platform
