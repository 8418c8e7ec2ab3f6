#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "http.h"
#include "image.h"
#include "safetensors.h"

// Parses POST /v1/detect. Needs no torch.

namespace hybrid_rt::serve {

/// A request that can't be parsed, with the HTTP status of the answer.
class RequestError : public std::runtime_error {
 public:
  RequestError(int status, const std::string& subject, const std::string& expected, const std::string& got,
               const std::string& remedy);
  RequestError(int status, const std::string& text) : std::runtime_error(text), status_(status) {}

  int status() const noexcept { return status_; }

 private:
  int status_;
};

/// Returns a value for a message: shortened, and without control characters that a terminal would obey.
std::string shown(const std::string& value);

struct DetectQuery {
  std::string model;
  float min_score = 0;
  std::optional<std::int64_t> deadline_ms;
  bool masks = true;
  bool annotated = false;
  std::optional<bool> exif;
};

/// Reads the query. Throws RequestError for a parameter that is unknown, repeated or has a value that is not allowed.
DetectQuery read_query(const HttpRequest& request);

/// Limits of a request's images.
struct ImageRules {
  std::size_t max_images = 16;
  apps::ImageLimits limits{};
  apps::Orientation orientation = apps::Orientation::kAsStored;  ///< applies to JPEG and PNG
};

/// An image of a request: a JPEG or PNG that is not decoded yet, or pixels. Points into the request.
struct SentImage {
  std::string name;                       ///< for messages
  std::span<const std::uint8_t> encoded;  ///< empty if there is a tensor
  std::optional<ImageTensor> tensor;
  apps::ImageSize size{};
};

/// Returns true if /v1/detect accepts this Content-Type.
bool is_known_type(const std::string& content_type);

/// Throws RequestError if the values of an image that was sent as a tensor are not pixel values.
void check_pixels(const SentImage& image);

/// Returns the images of a body, after reading and checking their sizes. Throws RequestError.
std::vector<SentImage> read_images(const HttpRequest& request, const ImageRules& rules);

}  // namespace hybrid_rt::serve
