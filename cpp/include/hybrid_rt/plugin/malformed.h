#pragma once

#include <string_view>

#include "hybrid_rt/error.h"

namespace hybrid_rt {

/// Returns the error for an engine's record that does not have its documented form. `scope` is a backend's name or a
/// part of the library.
inline Error malformed(std::string_view scope, std::string_view subject, std::string_view expected,
                       std::string_view got) {
  return Error(ErrorKind::kBundle, scope, subject, expected, got,
               "Convert the detector again: the file was altered, or written by another version of hybrid_rt.");
}

}  // namespace hybrid_rt
