#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/StringUtil.h>

#include <string>

#include "hybrid_rt/error.h"

// Errors of operators that refuse their inputs.

namespace hybrid_rt::operators {

/// Throws Error(ErrorKind::kInput) in the name of one operator.
struct Refuse {
  [[noreturn]] void operator()(const std::string& expected, const std::string& got, const char* remedy) const {
    throw Error(ErrorKind::kInput, "operators", name, expected, got, remedy);
  }

  const char* name;
};

/// Returns a tensor's dtype and shape for messages.
inline std::string describe(const at::Tensor& tensor) {
  return c10::str(c10::toString(tensor.scalar_type()), " ", tensor.sizes());
}

}  // namespace hybrid_rt::operators
