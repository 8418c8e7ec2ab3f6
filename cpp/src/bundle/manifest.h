#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "hybrid_rt/specs.h"

// The file format in C++, see docs/format.md. Its counterpart in Python is hybrid_rt/bundle/manifest.py.

namespace hybrid_rt {

/// A segment of an engine, and the range of the engine's outputs that belong to it.
struct Member {
  std::string name;
  int64_t first = 0;
  int64_t count = 0;
};

/// The manifest's description of an engine.
struct StoredEngine {
  std::vector<Member> members;
  std::vector<ArtifactSpec> variants;  ///< best first
  std::vector<TableEntry> table;

  std::vector<std::string> segments() const;
  /// Returns the name to show to users: "backbone+rpn.head".
  std::string name() const;
};

/// A record of the archive.
struct StoredRecord {
  std::string sha256;
  bool is_blob = false;
  bool is_golden = false;
};

struct Manifest {
  /// Version that is written. Version 1 can be read too.
  static constexpr int64_t kFormatVersion = 2;

  std::vector<StoredEngine> engines;
  std::vector<std::string> class_names;  ///< by label; empty if the file has none
  std::map<std::string, StoredRecord> records;
  std::string golden;     ///< JSON of the golden sample's description; empty if there is none
  std::string no_golden;  ///< reason why there is none

  /// Reads the manifest of the file at `path`, in the form of version 2. Throws Error(kBundle) that names the field
  /// that is missing or of the wrong type.
  static Manifest from_json(const std::string& text, const std::string& path);
};

/// Converts a manifest of version 1 to version 2. Throws Error(kBundle).
std::string upgraded_from_version_1(const std::string& text, const std::string& path);

/// Returns an engine's name to show to users, made of its segments' names: "backbone+rpn.head".
std::string engine_name(const std::vector<std::string>& segments);

/// Returns the segments of an engine's name in version 1. This is the inverse of engine_name().
std::vector<std::string> segments_of_version_1(const std::string& engine);

}  // namespace hybrid_rt
