#pragma once

#include <string>

#include "hybrid_rt/error.h"

// Errors of files that are not as hybrid_rt wrote them.

namespace hybrid_rt {

/// Returns the error for a part of a file. `path` may be empty if the file is not known, and `part` if it is the whole
/// file.
inline Error damaged(const std::string& path, const std::string& part, const std::string& expected,
                     const std::string& got) {
  const char* const separator = path.empty() || part.empty() ? "" : ", ";
  return Error(ErrorKind::kBundle, "bundle", path + separator + part, expected, got,
               "The file was altered or damaged: copy or convert it again.");
}

/// Returns the error for a field of the manifest, or for the manifest if `field` is empty.
inline Error damaged_manifest(const std::string& path, const std::string& field, const std::string& expected,
                              const std::string& got) {
  return damaged(path, field.empty() ? "manifest" : "manifest, " + field, expected, got);
}

}  // namespace hybrid_rt
