#pragma once

#include <c10/core/ScalarType.h>

#include <string>
#include <utility>
#include <vector>

#include "hybrid_rt/error.h"

namespace hybrid_rt {

/// A runtime's own types for torch's dtypes.
template <typename Type>
class DtypeTable {
 public:
  using Entries = std::vector<std::pair<c10::ScalarType, Type>>;  ///< torch's dtype, and the runtime's type

  /// `backend` and `runtime` are used in messages: "openvino", "OpenVINO".
  DtypeTable(std::string backend, std::string runtime, Entries entries)
      : backend_(std::move(backend)), runtime_(std::move(runtime)), entries_(std::move(entries)) {}

  /// Returns the runtime's type. Throws Error(kBackend) for a dtype that the runtime does not support.
  Type at(c10::ScalarType dtype) const {
    for (const auto& [known, type] : entries_) {
      if (known == dtype) return type;
    }
    throw Error(ErrorKind::kBackend, backend_, "dtype", "one that " + runtime_ + " supports", c10::toString(dtype),
                "Convert the tensor inside the segment.");
  }

 private:
  std::string backend_;
  std::string runtime_;
  Entries entries_;
};

}  // namespace hybrid_rt
