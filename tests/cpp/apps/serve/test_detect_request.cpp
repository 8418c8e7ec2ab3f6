#include "detect_request.h"

#include <doctest/doctest.h>

#include <string>

namespace {

using hybrid_rt::apps::encode_png;
using hybrid_rt::apps::Image;
using hybrid_rt::serve::HttpRequest;
using hybrid_rt::serve::is_known_type;
using hybrid_rt::serve::read_images;
using hybrid_rt::serve::read_query;
using hybrid_rt::serve::RequestError;

HttpRequest with_query(std::multimap<std::string, std::string> query) {
  HttpRequest request;
  request.query = std::move(query);
  return request;
}

template <class Call>
std::string refused(int status, Call&& call) {
  try {
    call();
  } catch (const RequestError& error) {
    CHECK(error.status() == status);
    return error.what();
  }
  FAIL("it was taken");
  return "";
}

std::string refused_query(const std::string& name, const std::string& value) {
  return refused(400, [&] { read_query(with_query({{name, value}})); });
}

std::string png(int width, int height) {
  const auto bytes =
      encode_png(Image{width, height, std::vector<std::uint8_t>(static_cast<std::size_t>(width) * height * 3)});
  return {bytes.begin(), bytes.end()};
}

HttpRequest with_body(const std::string& type, const std::string& body) {
  HttpRequest request;
  request.content_type = type;
  request.body = body;
  return request;
}

}  // namespace

TEST_CASE("a query's parameters are read") {
  const auto query = read_query(with_query({{"model", "digits"},
                                            {"min_score", "0.25"},
                                            {"deadline_ms", "1500"},
                                            {"masks", "false"},
                                            {"annotated", "true"}}));
  CHECK(query.model == "digits");
  CHECK(query.min_score == 0.25F);
  CHECK(query.deadline_ms == 1500);
  CHECK_FALSE(query.masks);
  CHECK(query.annotated);
  CHECK(read_query(with_query({})).masks);
  CHECK_FALSE(read_query(with_query({})).exif.has_value());
  CHECK(read_query(with_query({{"exif", "true"}})).exif.value());
  CHECK_FALSE(read_query(with_query({{"exif", "false"}})).exif.value());
}

TEST_CASE("an invalid query parameter is refused by name") {
  CHECK(refused_query("min_score", "1.5") ==
        "hybrid_rt[serve]: query min_score: expected a number from 0 to 1, got '1.5'. Omit it for the default.");
  for (const char* value : {"", "nan", "-0.1", "0.5x", " 0.5", "1e9999"}) refused_query("min_score", value);
  for (const char* value : {"", "0", "-5", "1.5", "99999999999999999999"}) refused_query("deadline_ms", value);
  for (const char* value : {"", "yes", "TRUE", "1"}) refused_query("masks", value);
  refused_query("exif", "6");
  refused_query("model", "");
  CHECK(refused_query("size", "5").find("got 'size'") != std::string::npos);
  CHECK(refused(400, [] {
          read_query(with_query({{"masks", "true"}, {"masks", "true"}}));
        }).find("expected one value, got two") != std::string::npos);
}

TEST_CASE("messages quote a client's text briefly and without control characters") {
  const std::string text = refused_query("min_score", "\x1b[31m" + std::string(1000, 'a'));
  CHECK(text.find('\x1b') == std::string::npos);
  CHECK(text.size() < 250);
}

TEST_CASE("content types are recognised") {
  CHECK(is_known_type("image/jpeg"));
  CHECK(is_known_type("application/x-safetensors"));
  CHECK_FALSE(is_known_type("text/plain"));
  CHECK_FALSE(is_known_type(""));
}

TEST_CASE("images are returned with their sizes") {
  const HttpRequest one = with_body("image/png", png(5, 3));
  const auto images = read_images(one, {});
  REQUIRE(images.size() == 1);
  CHECK(images[0].size.width == 5);
  CHECK(images[0].size.height == 3);

  std::string turned = png(5, 3);
  const std::string exif("MM\0\x2a\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0", 22);
  turned.insert(33, std::string("\0\0\0\x16", 4) + "eXIf" + exif + "....");  // the chunk's checksum is not read
  CHECK(read_images(with_body("image/png", turned), {}).at(0).size.width == 5);
  const auto upright =
      read_images(with_body("image/png", turned), {.orientation = hybrid_rt::apps::Orientation::kExif});
  CHECK(upright.at(0).size.width == 3);
  CHECK(upright.at(0).size.height == 5);

  HttpRequest several;
  several.content_type = "multipart/form-data";
  several.parts = {{"image", png(5, 3)}, {"image", png(7, 9)}};
  CHECK(read_images(several, {}).at(1).size.height == 9);
}

TEST_CASE("bodies that are not images are refused") {
  CHECK(refused(400, [] { read_images(with_body("image/png", ""), {}); }) ==
        "hybrid_rt[serve]: body: expected an image, got no bytes. Send the bytes of the image.");
  CHECK(refused(422, [] { read_images(with_body("image/png", "GIF89a"), {}); }).find("expected a JPEG or PNG") !=
        std::string::npos);
  refused(422, [] { read_images(with_body("application/x-safetensors", "nonsense"), {}); });
}

TEST_CASE("an image with too many pixels is refused by its header") {
  const std::string text =
      refused(422, [] { read_images(with_body("image/png", png(2000, 1000)), {.limits = {.max_pixels = 1'000'000}}); });
  CHECK(text.find("expected at most 16384 pixels per side and 1 megapixels, got 2000x1000") != std::string::npos);
}

TEST_CASE("a form contains at least one image, up to the limit, in fields named image") {
  HttpRequest form;
  form.content_type = "multipart/form-data";
  CHECK(refused(400, [&] { read_images(form, {}); }).find("got 0") != std::string::npos);
  form.parts = {{"file", png(1, 1)}};
  CHECK(refused(400, [&] { read_images(form, {}); }).find("got one named 'file'") != std::string::npos);
  form.parts = {{"image", png(1, 1)}, {"image", png(1, 1)}};
  CHECK(refused(400, [&] { read_images(form, {.max_images = 1}); }).find("expected 1 to 1 parts") != std::string::npos);
}
