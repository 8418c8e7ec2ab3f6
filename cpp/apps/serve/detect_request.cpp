#include "detect_request.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstring>
#include <set>

namespace hybrid_rt::serve {
namespace {

constexpr std::int64_t kMaxDeadline = 86'400'000;
/// Maximum ratio of the sides. Detectors scale an image to some hundred pixels, which leaves nothing of a thinner one.
constexpr std::int64_t kMaxAspect = 100;

std::span<const std::uint8_t> bytes_of(const std::string& text) {
  return {reinterpret_cast<const std::uint8_t*>(text.data()), text.size()};
}

bool boolean(const std::string& name, const std::string& value) {
  if (value == "true" || value == "false") return value == "true";
  throw RequestError(400, "query " + name, "true or false", shown(value), "Omit it for the default.");
}

template <class Number>
Number number(const std::string& name, const std::string& value, Number least, Number most) {
  Number result{};
  const char* const end = value.data() + value.size();
  const auto [stop, error] = std::from_chars(value.data(), end, result);
  if (error == std::errc() && stop == end && result >= least && result <= most) return result;
  const auto text = [](Number limit) {
    std::string digits = std::to_string(limit);
    return digits.find('.') == std::string::npos ? digits : digits.substr(0, digits.find('.'));
  };
  throw RequestError(400, "query " + name, "a number from " + text(least) + " to " + text(most), shown(value),
                     "Omit it for the default.");
}

void check_aspect(const std::string& name, const apps::ImageSize& size) {
  if (std::max(size.width, size.height) <= kMaxAspect * std::min(size.width, size.height)) return;
  throw RequestError(422, name, "sides of at most " + std::to_string(kMaxAspect) + " to 1",
                     std::to_string(size.width) + "x" + std::to_string(size.height), "Split it into tiles.");
}

SentImage encoded_image(const std::string& name, const std::string& content, const ImageRules& rules) {
  if (content.empty()) throw RequestError(400, name, "a JPEG or PNG", "no bytes", "Send the bytes of the image.");
  SentImage image{name, bytes_of(content), std::nullopt, {}};
  try {
    image.size = apps::read_size(image.encoded, name, rules.limits, rules.orientation);
  } catch (const apps::ImageError& error) {
    throw RequestError(422, error.what());
  }
  check_aspect(name, image.size);
  return image;
}

std::vector<SentImage> parts_of(const HttpRequest& request, const ImageRules& rules) {
  std::vector<SentImage> images;
  for (const Part& part : request.parts) {
    if (part.name != "image") {
      throw RequestError(400, "body", "parts named 'image'", "one named " + shown(part.name),
                         "Send parameters in the query.");
    }
    images.push_back(encoded_image("image " + std::to_string(images.size()), part.content, rules));
  }
  if (images.empty() || images.size() > rules.max_images) {
    throw RequestError(400, "body", "1 to " + std::to_string(rules.max_images) + " parts named 'image'",
                       std::to_string(images.size()), "Send several requests for more.");
  }
  return images;
}

std::vector<SentImage> tensors_of(const HttpRequest& request, const ImageRules& rules) {
  std::vector<SentImage> images;
  try {
    for (ImageTensor& tensor : read_image_tensors(bytes_of(request.body), {.max_images = rules.max_images,
                                                                           .max_side = rules.limits.max_side,
                                                                           .max_pixels = rules.limits.max_pixels})) {
      const apps::ImageSize size{static_cast<int>(tensor.width), static_cast<int>(tensor.height)};
      check_aspect("tensor " + shown(tensor.name), size);
      images.push_back({tensor.name, {}, std::move(tensor), size});
    }
  } catch (const PayloadError& error) {
    throw RequestError(422, error.what());
  }
  return images;
}

}  // namespace

RequestError::RequestError(int status, const std::string& subject, const std::string& expected, const std::string& got,
                           const std::string& remedy)
    : std::runtime_error("hybrid_rt[serve]: " + subject + ": expected " + expected + ", got " + got + ". " + remedy),
      status_(status) {}

std::string shown(const std::string& value) {
  std::string text;
  for (const char c : value.substr(0, 64)) text += c >= 0x20 && c < 0x7f ? c : '?';
  return "'" + text + (value.size() > 64 ? "...'" : "'");
}

DetectQuery read_query(const HttpRequest& request) {
  DetectQuery query;
  std::set<std::string> seen;
  for (const auto& [name, value] : request.query) {
    if (!seen.insert(name).second) {
      throw RequestError(400, "query " + shown(name), "one value", "two", "Remove one.");
    }
    if (name == "model") {
      if (value.empty()) throw RequestError(400, "query model", "a model's name", "''", "GET /v1/models lists them.");
      query.model = value;
    } else if (name == "min_score") {
      query.min_score = static_cast<float>(number(name, value, 0.0, 1.0));
    } else if (name == "deadline_ms") {
      query.deadline_ms = number<std::int64_t>(name, value, 1, kMaxDeadline);
    } else if (name == "masks") {
      query.masks = boolean(name, value);
    } else if (name == "annotated") {
      query.annotated = boolean(name, value);
    } else if (name == "exif") {
      query.exif = boolean(name, value);
    } else {
      throw RequestError(400, "query", "model, min_score, deadline_ms, masks, annotated or exif", shown(name),
                         "GET /openapi.json describes them.");
    }
  }
  return query;
}

bool is_known_type(const std::string& content_type) {
  // The format of an image is detected from its bytes, because "image/jpg", "image/*" and a store's
  // "binary/octet-stream" are common.
  static const std::set<std::string> kKnown{"application/octet-stream", "binary/octet-stream", "multipart/form-data",
                                            "application/x-safetensors"};
  return content_type.starts_with("image/") || kKnown.contains(content_type);
}

void check_pixels(const SentImage& image) {
  if (!image.tensor) return;
  try {
    check_values(*image.tensor);
  } catch (const PayloadError& error) {
    throw RequestError(422, error.what());
  }
}

std::vector<SentImage> read_images(const HttpRequest& request, const ImageRules& rules) {
  if (request.content_type == "multipart/form-data") return parts_of(request, rules);
  if (request.body.empty()) throw RequestError(400, "body", "an image", "no bytes", "Send the bytes of the image.");
  if (request.content_type == "application/x-safetensors") return tensors_of(request, rules);
  return {encoded_image("image", request.body, rules)};
}

}  // namespace hybrid_rt::serve
