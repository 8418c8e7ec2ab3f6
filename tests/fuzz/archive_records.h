#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

/// A record of a bundle: its name below the archive's directory, and its content, unpacked.
struct Record {
  std::string name;
  std::string content;

  bool operator==(const Record&) const = default;
};

/// Returns the records that an archive's central directory names, read without any of the library's code; nothing if
/// the fields do not fit together.
std::optional<std::vector<Record>> records_of(std::span<const std::uint8_t> archive);

/// Returns an archive of these records, stored, in a directory named "archive".
std::string archive_of(const std::vector<Record>& records);
