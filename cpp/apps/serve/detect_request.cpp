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

void check_aspect(const std::string& name, const apps::PictureSize& size) {
  if (std::max(size.width, size.height) <= kMaxAspect * std::min(size.width, size.height)) return;
  throw RequestError(422, name, "sides of at most " + std::to_string(kMaxAspect) + " to 1",
                     std::to_string(size.width) + "x" + std::to_string(size.height), "Split it into tiles.");
}

SentPicture encoded_picture(const std::string& name, const std::string& content, const PictureRules& rules) {
  if (content.empty()) throw RequestError(400, name, "a JPEG or PNG", "no bytes", "Send the bytes of the image.");
  SentPicture picture{name, bytes_of(content), std::nullopt, {}};
  try {
    picture.size = apps::read_size(picture.encoded, name, rules.picture, rules.orientation);
  } catch (const apps::PictureError& error) {
    throw RequestError(422, error.what());
  }
  check_aspect(name, picture.size);
  return picture;
}

std::vector<SentPicture> parts_of(const HttpRequest& request, const PictureRules& rules) {
  std::vector<SentPicture> pictures;
  for (const Part& part : request.parts) {
    if (part.name != "image") {
      throw RequestError(400, "body", "parts named 'image'", "one named " + shown(part.name),
                         "Send parameters in the query.");
    }
    pictures.push_back(encoded_picture("image " + std::to_string(pictures.size()), part.content, rules));
  }
  if (pictures.empty() || pictures.size() > rules.max_pictures) {
    throw RequestError(400, "body", "1 to " + std::to_string(rules.max_pictures) + " parts named 'image'",
                       std::to_string(pictures.size()), "Send several requests for more.");
  }
  return pictures;
}

std::vector<SentPicture> tensors_of(const HttpRequest& request, const PictureRules& rules) {
  std::vector<SentPicture> pictures;
  try {
    for (PictureTensor& tensor :
         read_picture_tensors(bytes_of(request.body), {.max_pictures = rules.max_pictures,
                                                       .max_side = rules.picture.max_side,
                                                       .max_pixels = rules.picture.max_pixels})) {
      const apps::PictureSize size{static_cast<int>(tensor.width), static_cast<int>(tensor.height)};
      check_aspect("tensor " + shown(tensor.name), size);
      pictures.push_back({tensor.name, {}, std::move(tensor), size});
    }
  } catch (const PayloadError& error) {
    throw RequestError(422, error.what());
  }
  return pictures;
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

void check_pixels(const SentPicture& picture) {
  if (!picture.tensor) return;
  try {
    check_values(*picture.tensor);
  } catch (const PayloadError& error) {
    throw RequestError(422, error.what());
  }
}

std::vector<SentPicture> read_pictures(const HttpRequest& request, const PictureRules& rules) {
  if (request.content_type == "multipart/form-data") return parts_of(request, rules);
  if (request.body.empty()) throw RequestError(400, "body", "an image", "no bytes", "Send the bytes of the image.");
  if (request.content_type == "application/x-safetensors") return tensors_of(request, rules);
  return {encoded_picture("image", request.body, rules)};
}

}  // namespace hybrid_rt::serve
