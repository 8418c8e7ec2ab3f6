#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

/// A record of a bundle: its name within the archive's directory, and its unpacked content.
struct Record {
  std::string name;
  std::string content;

  bool operator==(const Record&) const = default;
};

/// Returns the records in an archive's central directory, without using the library's code; nothing if the fields are
/// inconsistent.
std::optional<std::vector<Record>> records_of(std::span<const std::uint8_t> archive);

/// Returns an uncompressed archive of these records, in a directory named "archive".
std::string archive_of(const std::vector<Record>& records);
