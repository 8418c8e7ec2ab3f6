#include "safetensors.h"

#include <algorithm>
#include <cstring>
#include <functional>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <utility>

namespace hybrid_rt::serve {
namespace {

using Json = nlohmann::ordered_json;
using Type = ImageTensor::Type;

constexpr std::size_t kLengthBytes = 8;
constexpr std::int64_t kChannels = 3;
/// Tolerance at 0 and 1 for the rounding of a client's resizing in floats.
constexpr float kRounding = 0.5F / 255;
constexpr const char* kSubject = "safetensors body";
constexpr const char* kRemedy = "Write it with the safetensors library.";
constexpr const char* kMetadata = "__metadata__";
constexpr const char* kInfo = "\"dtype\", \"shape\" and \"data_offsets\" and nothing else";
constexpr const char* kShapes = "U8 [height, width, 3] or F32 [3, height, width]";

/// Returns a client's text for a message: shortened between two characters, without control characters.
std::string shown(std::string_view text) {
  constexpr std::size_t kMaxBytes = 60;
  constexpr unsigned char kContinuation = 0x80;
  std::string_view kept = text.substr(0, kMaxBytes);
  if (kept.size() < text.size()) {
    while (!kept.empty() && (static_cast<unsigned char>(text[kept.size()]) & 0xC0) == kContinuation) {
      kept.remove_suffix(1);
    }
  }
  std::string result(kept);
  std::replace_if(result.begin(), result.end(), [](unsigned char byte) { return byte < 0x20 || byte == 0x7F; }, '?');
  return result + (kept.size() < text.size() ? "..." : "");
}

std::string subject_of(const std::string& name) { return std::string(kSubject) + ", tensor \"" + shown(name) + "\""; }

std::string shown_json(const Json& value) { return shown(value.dump()); }

PayloadError images_expected(std::size_t max_images, const std::string& got) {
  return PayloadError(kSubject, "1 to " + std::to_string(max_images) + " images", got, "Send several requests.");
}

/// Refuses what the parser would accept: a repeated key (the parser keeps its last value), nesting, which no valid
/// header has, and more keys than a valid header can have, because each lookup in an ordered_json is a linear search.
class HeaderRules {
 public:
  explicit HeaderRules(std::size_t max_images) : max_images_(max_images) {}

  bool operator()(int depth, Json::parse_event_t event, Json& value) {
    constexpr int kMaxDepth = 3;  // the header, a tensor, its shape
    switch (event) {
      case Json::parse_event_t::object_start:
        check_depth(depth, kMaxDepth);
        keys_.emplace_back();
        break;
      case Json::parse_event_t::array_start:
        check_depth(depth, kMaxDepth);
        break;
      case Json::parse_event_t::object_end:
        keys_.pop_back();
        break;
      case Json::parse_event_t::key:
        check_key(value.get_ref<const std::string&>());
        break;
      default:
        break;
    }
    return true;
  }

 private:
  static void check_depth(int depth, int max_depth) {
    if (depth < max_depth) return;
    throw PayloadError(kSubject, "a header of names with " + std::string(kInfo), "deeper nesting", kRemedy);
  }

  void check_key(const std::string& key) {
    constexpr std::size_t kMaxEntries = 100;  // a tensor has three; __metadata__ may have any number
    if (!keys_.back().insert(key).second) {
      throw PayloadError(kSubject, "a header in which a name stands once", "\"" + shown(key) + "\" twice", kRemedy);
    }
    const bool is_outermost = keys_.size() == 1;
    if (is_outermost && keys_.back().size() > max_images_ + keys_.back().count(kMetadata)) {
      throw images_expected(max_images_, "more");
    }
    if (!is_outermost && keys_.back().size() > kMaxEntries) {
      throw PayloadError(kSubject, "at most " + std::to_string(kMaxEntries) + " entries in an object of the header",
                         "more", kRemedy);
    }
  }

  std::size_t max_images_;
  std::vector<std::set<std::string>> keys_;  ///< keys of the open objects
};

Json parse_header(std::span<const std::uint8_t> text, std::size_t max_images) {
  // The format requires this. It also excludes a byte order mark, which the parser would skip.
  if (text.empty() || text.front() != '{') {
    throw PayloadError(kSubject, "a JSON object as header", "something else", kRemedy);
  }
  HeaderRules rules(max_images);
  try {
    return Json::parse(text.begin(), text.end(), std::ref(rules));
  } catch (const Json::parse_error& error) {
    // The parser's text may contain bytes of the body, which need not be UTF-8.
    throw PayloadError(kSubject, "JSON as header", "a mistake at its byte " + std::to_string(error.byte), kRemedy);
  } catch (const Json::out_of_range&) {
    throw PayloadError(kSubject, "JSON as header", "a number that is too large", kRemedy);
  }
}

void check_metadata(const Json& metadata) {
  const bool all_texts = metadata.is_object() &&
                         std::all_of(metadata.begin(), metadata.end(), [](const Json& v) { return v.is_string(); });
  if (!all_texts) {
    throw PayloadError(kSubject, std::string(kMetadata) + " with texts alone", shown_json(metadata), kRemedy);
  }
}

/// Returns the numbers of an array of `count` non-negative integers; nothing for any other value.
std::optional<std::vector<std::uint64_t>> integers(const Json& value, std::size_t count) {
  if (!value.is_array() || value.size() != count) return std::nullopt;
  std::vector<std::uint64_t> result;
  for (const Json& item : value) {
    if (!item.is_number_unsigned()) return std::nullopt;
    result.push_back(item.get<std::uint64_t>());
  }
  return result;
}

/// Returns an image's description without its data.
ImageTensor described(const std::string& name, const Json& info, const ImageTensorLimits& limits) {
  const Json& dtype = info.at("dtype");
  const Json& shape = info.at("shape");
  const std::optional<std::vector<std::uint64_t>> sizes = integers(shape, 3);
  ImageTensor image;
  image.name = name;
  image.type = dtype == "F32" ? Type::kFloats : Type::kBytes;
  const std::size_t channels_at = image.type == Type::kFloats ? 0 : 2;
  if ((dtype != "F32" && dtype != "U8") || !sizes || (*sizes)[channels_at] != kChannels) {
    throw PayloadError(subject_of(name), kShapes, shown_json(dtype) + " " + shown_json(shape), "Send images in RGB.");
  }

  const std::uint64_t height = (*sizes)[image.type == Type::kFloats ? 1 : 0];
  const std::uint64_t width = (*sizes)[image.type == Type::kFloats ? 2 : 1];
  const std::uint64_t max_side = static_cast<std::uint64_t>(limits.max_side);
  const std::string got = std::to_string(width) + "x" + std::to_string(height);
  if (height == 0 || width == 0) {
    throw PayloadError(subject_of(name), "at least one pixel", got, "Omit empty images.");
  }
  if (height > max_side || width > max_side || height > static_cast<std::uint64_t>(limits.max_pixels) / width) {
    throw PayloadError(
        subject_of(name),
        "at most " + std::to_string(max_side) + " pixels per side and " + std::to_string(limits.max_pixels) + " in all",
        got, "Scale the image down, or split it into tiles.");
  }
  image.height = static_cast<std::int64_t>(height);
  image.width = static_cast<std::int64_t>(width);
  return image;
}

std::span<const std::uint8_t> data_of(const ImageTensor& image, const Json& info, std::span<const std::uint8_t> data) {
  const Json& value = info.at("data_offsets");
  const std::optional<std::vector<std::uint64_t>> offsets = integers(value, 2);
  if (!offsets || (*offsets)[0] > (*offsets)[1] || (*offsets)[1] > data.size()) {
    throw PayloadError(subject_of(image.name),
                       "data_offsets within the data's " + std::to_string(data.size()) + " bytes", shown_json(value),
                       kRemedy);
  }
  const std::uint64_t size = (*offsets)[1] - (*offsets)[0];
  const std::uint64_t pixel_bytes = kChannels * (image.type == Type::kFloats ? sizeof(float) : 1);
  const std::uint64_t pixels = static_cast<std::uint64_t>(image.height) * static_cast<std::uint64_t>(image.width);
  if (size % pixel_bytes != 0 || size / pixel_bytes != pixels) {
    throw PayloadError(subject_of(image.name),
                       std::to_string(pixel_bytes) + " bytes for each of " + std::to_string(image.width) + "x" +
                           std::to_string(image.height) + " pixels",
                       std::to_string(size) + " bytes", kRemedy);
  }
  return data.subspan((*offsets)[0], size);
}

/// Checks that the data has neither holes nor overlaps, as the format requires.
void check_cover(const std::vector<ImageTensor>& images, std::span<const std::uint8_t> data) {
  std::vector<const ImageTensor*> by_place;
  for (const ImageTensor& image : images) by_place.push_back(&image);
  std::sort(by_place.begin(), by_place.end(),
            [](const ImageTensor* a, const ImageTensor* b) { return a->data.data() < b->data.data(); });
  const std::uint8_t* next = data.data();
  for (const ImageTensor* image : by_place) {
    const std::ptrdiff_t gap = image->data.data() - next;
    if (gap != 0) {
      throw PayloadError(subject_of(image->name), "data that begins where the data before it ends",
                         gap < 0 ? "an overlap" : "a gap of " + std::to_string(gap) + " bytes", kRemedy);
    }
    next += image->data.size();
  }
  const std::ptrdiff_t rest = data.data() + data.size() - next;
  if (rest != 0) {
    throw PayloadError(kSubject, "no data but the tensors'", std::to_string(rest) + " bytes more", kRemedy);
  }
}

std::span<const std::uint8_t> header_text(std::span<const std::uint8_t> body, const ImageTensorLimits& limits) {
  if (body.size() < kLengthBytes) {
    throw PayloadError(kSubject, "8 bytes with the header's length", std::to_string(body.size()) + " bytes", kRemedy);
  }
  std::uint64_t length = 0;
  for (std::size_t i = kLengthBytes; i-- > 0;) length = length << 8 | body[i];
  if (length > limits.max_header_bytes) {
    throw PayloadError(kSubject, "a header of at most " + std::to_string(limits.max_header_bytes) + " bytes",
                       std::to_string(length), "Send fewer images, under shorter names.");
  }
  const std::span<const std::uint8_t> rest = body.subspan(kLengthBytes);
  if (length > rest.size()) {
    throw PayloadError(kSubject, "a header of " + std::to_string(length) + " bytes, as its length says",
                       std::to_string(rest.size()) + " bytes", "Send the whole body.");
  }
  return rest.first(length);
}

}  // namespace

PayloadError::PayloadError(std::string_view subject, std::string_view expected, std::string_view got,
                           std::string_view remedy)
    : std::runtime_error("hybrid_rt[serve]: " + std::string(subject) + ": expected " + std::string(expected) +
                         ", got " + std::string(got) + ". " + std::string(remedy)) {}

std::vector<ImageTensor> read_image_tensors(std::span<const std::uint8_t> body, const ImageTensorLimits& limits) {
  const std::span<const std::uint8_t> text = header_text(body, limits);
  const std::span<const std::uint8_t> data = body.subspan(kLengthBytes + text.size());
  const Json header = parse_header(text, limits.max_images);

  std::vector<ImageTensor> images;
  for (const auto& [name, info] : header.items()) {
    if (name == kMetadata) {
      check_metadata(info);
      continue;
    }
    if (!info.is_object() || info.size() != 3 || !info.contains("dtype") || !info.contains("shape") ||
        !info.contains("data_offsets")) {
      throw PayloadError(subject_of(name), kInfo, shown_json(info), kRemedy);
    }
    ImageTensor image = described(name, info, limits);
    image.data = data_of(image, info, data);
    images.push_back(std::move(image));
  }
  if (images.empty()) throw images_expected(limits.max_images, "none");
  check_cover(images, data);
  return images;
}

void check_values(const ImageTensor& image) {
  if (image.type != Type::kFloats) return;
  for (std::size_t at = 0; at < image.data.size(); at += sizeof(float)) {
    float value = 0;
    std::memcpy(&value, image.data.data() + at, sizeof(float));
    if (value >= -kRounding && value <= 1 + kRounding) continue;
    throw PayloadError(subject_of(image.name), "values in 0..1", std::to_string(value),
                       "Divide bytes by 255, and leave normalization to the detector.");
  }
}

}  // namespace hybrid_rt::serve
