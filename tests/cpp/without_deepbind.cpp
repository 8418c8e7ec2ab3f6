// A dlopen that leaves RTLD_DEEPBIND out: OpenVINO opens TBB with it, and the sanitizers, which take the place of
// malloc and of pthread's functions, end the process then (https://github.com/google/sanitizers/issues/611). A
// program's own functions come before those of libraries, so that linking this file is enough.

#include <dlfcn.h>

extern "C" __attribute__((visibility("default"))) void* dlopen(const char* file, int mode) noexcept {
  using Open = void* (*)(const char*, int);
  static const Open next = reinterpret_cast<Open>(dlsym(RTLD_NEXT, "dlopen"));
  return next(file, mode & ~RTLD_DEEPBIND);
}
