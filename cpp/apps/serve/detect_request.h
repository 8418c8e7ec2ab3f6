#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "http.h"
#include "picture.h"
#include "safetensors.h"

// POST /v1/detect as it is understood; needs no torch.

namespace hybrid_rt::serve {

/// A request that can't be understood, with the status that says so.
class RequestError : public std::runtime_error {
 public:
  RequestError(int status, const std::string& subject, const std::string& expected, const std::string& got,
               const std::string& remedy);
  RequestError(int status, const std::string& text) : std::runtime_error(text), status_(status) {}

  int status() const noexcept { return status_; }

 private:
  int status_;
};

/// A value as it may stand in a message: short, and nothing that a terminal would obey.
std::string shown(const std::string& value);

struct DetectQuery {
  std::string model;
  float min_score = 0;
  std::optional<std::int64_t> deadline_ms;
  bool masks = true;
  bool annotated = false;
  std::optional<bool> exif;
};

/// Throws RequestError for a parameter that is unknown, stands twice or has another value.
DetectQuery read_query(const HttpRequest& request);

/// What a request may hold.
struct PictureRules {
  std::size_t max_pictures = 16;
  apps::PictureLimits picture{};
  apps::Orientation orientation = apps::Orientation::kAsStored;  ///< of JPEGs and PNGs
};

/// A picture of a request: a JPEG or PNG that is still to be decoded, or pixels. Points into the request.
struct SentPicture {
  std::string name;                       ///< for messages
  std::span<const std::uint8_t> encoded;  ///< empty if there is a tensor
  std::optional<PictureTensor> tensor;
  apps::PictureSize size{};
};

/// Whether /v1/detect reads this Content-Type.
bool is_known_type(const std::string& content_type);

/// Throws RequestError if the values of a picture that was sent as a tensor are not those of pixels.
void check_pixels(const SentPicture& picture);

/// The pictures of a body, their sizes read and checked. Throws RequestError.
std::vector<SentPicture> read_pictures(const HttpRequest& request, const PictureRules& rules);

}  // namespace hybrid_rt::serve
