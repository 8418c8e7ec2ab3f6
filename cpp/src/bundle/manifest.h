#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "hybrid_rt/specs.h"

// The C++ home of the file format, docs/format.md; hybrid_rt/bundle/manifest.py is the Python one.

namespace hybrid_rt {

/// A segment in an engine, and which of the engine's outputs are its own.
struct Member {
  std::string name;
  int64_t first = 0;
  int64_t count = 0;
};

/// An engine as the manifest describes it.
struct StoredEngine {
  std::vector<Member> members;
  std::vector<ArtifactSpec> variants;  ///< best first
  std::vector<TableEntry> table;

  std::vector<std::string> segments() const;
  /// For people: "backbone+rpn.head".
  std::string name() const;
};

/// A record of the archive.
struct StoredRecord {
  std::string sha256;
  bool is_blob = false;
  bool is_golden = false;
};

struct Manifest {
  /// What is written. Version 1 is read too.
  static constexpr int64_t kFormatVersion = 2;

  std::vector<StoredEngine> engines;
  std::vector<std::string> class_names;  ///< by label; empty if the file does not say
  std::map<std::string, StoredRecord> records;
  std::string golden;     ///< JSON of the golden sample's description; empty if there is none
  std::string no_golden;  ///< why there is none

  /// Reads the manifest of the file at `path`, in the form of version 2. Throws Error(kBundle) that names what is
  /// missing or of the wrong type.
  static Manifest from_json(const std::string& text, const std::string& path);
};

/// The manifest of a file of version 1 in the form of version 2. Throws Error(kBundle).
std::string upgraded_from_version_1(const std::string& text, const std::string& path);

/// An engine's name, for people, by those of its segments: "backbone+rpn.head".
std::string engine_name(const std::vector<std::string>& segments);

/// The inverse, for what version 1 wrote.
std::vector<std::string> segments_of_version_1(const std::string& engine);

}  // namespace hybrid_rt
