#include "common/platform/large_pages.h"

namespace hybrid_rt::platform {

void ask_for_large_pages(void* /*memory*/, std::size_t /*size*/) {}  // Windows has them only for privileged accounts

}  // namespace hybrid_rt::platform
