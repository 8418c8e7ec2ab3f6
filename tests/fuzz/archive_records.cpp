#include "archive_records.h"

#include <zlib.h>

#include <cstring>

namespace {

constexpr std::size_t kEntryBytes = 46;
constexpr std::size_t kLocalBytes = 30;
constexpr std::size_t kMostUnpacked = std::size_t{8} << 20;
constexpr char kDirectory[] = "archive/";

/// Reads little-endian fields. A field beyond the end makes it invalid.
class Fields {
 public:
  explicit Fields(std::span<const std::uint8_t> bytes) : bytes_(bytes) {}

  template <class Number>
  Number at(std::size_t position) {
    Number value{};
    if (!has(position, sizeof(Number))) return value;
    std::memcpy(&value, bytes_.data() + position, sizeof(Number));
    return value;
  }

  std::string text(std::size_t position, std::size_t length) {
    if (!has(position, length)) return {};
    return {reinterpret_cast<const char*>(bytes_.data()) + position, length};
  }

  bool is_valid() const { return is_valid_; }

 private:
  bool has(std::size_t position, std::size_t length) {
    if (position > bytes_.size() || length > bytes_.size() - position) is_valid_ = false;
    return is_valid_;
  }

  std::span<const std::uint8_t> bytes_;
  bool is_valid_ = true;
};

std::optional<std::string> inflated(const std::string& packed) {
  z_stream stream{};
  if (inflateInit2(&stream, -MAX_WBITS) != Z_OK) return std::nullopt;
  stream.next_in = reinterpret_cast<Bytef*>(const_cast<char*>(packed.data()));
  stream.avail_in = static_cast<uInt>(packed.size());
  std::string content;
  int state = Z_OK;
  while (state == Z_OK && content.size() < kMostUnpacked) {
    char part[1 << 14];
    stream.next_out = reinterpret_cast<Bytef*>(part);
    stream.avail_out = sizeof(part);
    state = inflate(&stream, Z_NO_FLUSH);
    content.append(part, sizeof(part) - stream.avail_out);
  }
  inflateEnd(&stream);
  return state == Z_STREAM_END ? std::optional(content) : std::nullopt;
}

std::string without_directory(const std::string& name) {
  const std::size_t end = name.find('/');
  return end == std::string::npos ? std::string() : name.substr(end + 1);
}

template <class... Numbers>
std::string packed(Numbers... numbers) {
  std::string bytes;
  (bytes.append(reinterpret_cast<const char*>(&numbers), sizeof(numbers)), ...);
  return bytes;
}

}  // namespace

std::optional<std::vector<Record>> records_of(std::span<const std::uint8_t> archive) {
  const std::string_view text(reinterpret_cast<const char*>(archive.data()), archive.size());
  const std::size_t end = text.rfind("PK\5\6");
  if (end == std::string_view::npos) return std::nullopt;
  Fields fields(archive);
  const auto count = fields.at<std::uint16_t>(end + 10);
  std::size_t at = fields.at<std::uint32_t>(end + 16);
  std::vector<Record> records;
  for (unsigned i = 0; i < count && fields.is_valid(); ++i) {
    const auto method = fields.at<std::uint16_t>(at + 10);
    const auto length = fields.at<std::uint32_t>(at + 20);
    const auto name = fields.at<std::uint16_t>(at + 28);
    const auto extra = fields.at<std::uint16_t>(at + 30);
    const auto comment = fields.at<std::uint16_t>(at + 32);
    const std::size_t local = fields.at<std::uint32_t>(at + 42);
    const std::size_t begin =
        local + kLocalBytes + fields.at<std::uint16_t>(local + 26) + fields.at<std::uint16_t>(local + 28);
    Record record{without_directory(fields.text(at + kEntryBytes, name)), fields.text(begin, length)};
    if (method != 0) {
      const std::optional<std::string> content = inflated(record.content);
      if (!content) return std::nullopt;
      record.content = *content;
    }
    records.push_back(std::move(record));
    at += kEntryBytes + name + extra + comment;
  }
  return fields.is_valid() ? std::optional(records) : std::nullopt;
}

std::string archive_of(const std::vector<Record>& records) {
  using U16 = std::uint16_t;
  using U32 = std::uint32_t;
  std::string archive;
  std::string directory;
  for (const Record& record : records) {
    const std::string name = kDirectory + record.name;
    const auto* const bytes = reinterpret_cast<const Bytef*>(record.content.data());
    const auto checksum = static_cast<U32>(crc32(0, bytes, static_cast<uInt>(record.content.size())));
    const auto size = static_cast<U32>(record.content.size());
    const auto length = static_cast<U16>(name.size());
    // Version 2.0, no flags, stored, no timestamp.
    const std::string shared = packed(U16{20}, U16{0}, U16{0}, U32{0}, checksum, size, size, length, U16{0});
    directory += "PK\1\2" + packed(U16{20}) + shared + packed(U16{0}, U16{0}, U16{0}, U32{0}) +
                 packed(static_cast<U32>(archive.size())) + name;
    archive += "PK\3\4" + shared + name + record.content;
  }
  const auto count = static_cast<U16>(records.size());
  const std::string end = "PK\5\6" + packed(U16{0}, U16{0}, count, count, static_cast<U32>(directory.size()),
                                            static_cast<U32>(archive.size()), U16{0});
  return archive + directory + end;
}
