// Replaces dlopen by a version without RTLD_DEEPBIND. OpenVINO opens TBB with this flag, and sanitizers, which replace
// malloc and pthread's functions, then abort the process (https://github.com/google/sanitizers/issues/611). A program's
// own functions take precedence over those of libraries, so linking this file is enough.

#include <dlfcn.h>

extern "C" __attribute__((visibility("default"))) void* dlopen(const char* file, int mode) noexcept {
  using Open = void* (*)(const char*, int);
  static const Open next = reinterpret_cast<Open>(dlsym(RTLD_NEXT, "dlopen"));
  return next(file, mode & ~RTLD_DEEPBIND);
}
