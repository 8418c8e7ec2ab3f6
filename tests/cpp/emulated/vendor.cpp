#include "vendor.h"

namespace emulated {

Vendor& Vendor::instance() {
  static auto* const vendor = new Vendor();
  return *vendor;
}

}  // namespace emulated
