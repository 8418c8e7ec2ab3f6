#include <doctest/doctest.h>

#include <cstdint>
#include <cstring>
#include <limits>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "safetensors.h"

namespace {

using hybrid_rt::serve::ImageTensor;
using hybrid_rt::serve::ImageTensorLimits;
using hybrid_rt::serve::PayloadError;
using hybrid_rt::serve::read_image_tensors;

using Bytes = std::vector<std::uint8_t>;
using Type = ImageTensor::Type;

constexpr std::size_t kLengthBytes = 8;

Bytes body_of(const std::string& header, std::size_t data_size, std::optional<std::uint64_t> length = std::nullopt) {
  Bytes body;
  const std::uint64_t stated = length.value_or(header.size());
  for (std::size_t i = 0; i < kLengthBytes; ++i) body.push_back(static_cast<std::uint8_t>(stated >> (8 * i)));
  body.insert(body.end(), header.begin(), header.end());
  for (std::size_t i = 0; i < data_size; ++i) body.push_back(static_cast<std::uint8_t>(i));
  return body;
}

/// Returns a header's entry. `shape` and `offsets` are inserted verbatim.
std::string entry(const std::string& name, const std::string& dtype, const std::string& shape,
                  const std::string& offsets) {
  return "\"" + name + R"(":{"dtype":")" + dtype + R"(","shape":)" + shape + R"(,"data_offsets":)" + offsets + "}";
}

std::string failure(const Bytes& body, const ImageTensorLimits& limits = {}) {
  try {
    read_image_tensors(body, limits);
  } catch (const PayloadError& error) {
    return error.what();
  }
  FAIL("no PayloadError");
  return "";
}

/// Returns the error of a header followed by `data_size` bytes.
std::string failure(const std::string& header, std::size_t data_size, const ImageTensorLimits& limits = {}) {
  return failure(body_of(header, data_size), limits);
}

std::string failure_of_entry(const std::string& dtype, const std::string& shape, const std::string& offsets,
                             std::size_t data_size, const ImageTensorLimits& limits = {}) {
  return failure("{" + entry("a", dtype, shape, offsets) + "}", data_size, limits);
}

bool is_in(const std::string& part, const std::string& text) {
  INFO(text);
  return text.find(part) != std::string::npos;
}

}  // namespace

TEST_CASE("images of both kinds are returned in the order of the header's text") {
  // "b" comes first, although its data is last and its name would be sorted last.
  const std::string header =
      "{" + entry("b", "F32", "[3,1,2]", "[18,42]") + "," + entry("a", "U8", "[2,3,3]", "[0,18]") + "}";
  const Bytes body = body_of(header, 42);
  const std::vector<ImageTensor> images = read_image_tensors(body);
  REQUIRE(images.size() == 2);
  const std::uint8_t* data = body.data() + kLengthBytes + header.size();

  CHECK(images[0].name == "b");
  CHECK(images[0].type == Type::kFloats);
  CHECK(images[0].height == 1);
  CHECK(images[0].width == 2);
  CHECK(images[0].data.data() == data + 18);
  CHECK(images[0].data.size() == 24);

  CHECK(images[1].name == "a");
  CHECK(images[1].type == Type::kBytes);
  CHECK(images[1].height == 2);
  CHECK(images[1].width == 3);
  CHECK(images[1].data.data() == data);
  CHECK(images[1].data.size() == 18);
}

TEST_CASE("metadata and spaces after the header are accepted") {
  const std::string header = R"({"__metadata__":{"format":"np"},)" + entry("a", "U8", "[1,1,3]", "[0,3]") + "}     ";
  CHECK(read_image_tensors(body_of(header, 3)).size() == 1);
  CHECK(is_in("texts alone, got {\"format\":1}",
              failure(R"({"__metadata__":{"format":1},)" + entry("a", "U8", "[1,1,3]", "[0,3]") + "}", 3)));
  CHECK(is_in("texts alone, got \"x\"", failure(R"({"__metadata__":"x"})", 0)));
}

TEST_CASE("the message has the form of all errors") {
  CHECK(failure(Bytes(7)) ==
        "hybrid_rt[serve]: safetensors body: expected 8 bytes with the header's length, got 7 bytes. "
        "Write it with the safetensors library.");
  CHECK(failure_of_entry("U8", "[2,2,4]", "[0,16]", 16) ==
        "hybrid_rt[serve]: safetensors body, tensor \"a\": expected U8 [height, width, 3] or F32 [3, height, width], "
        "got \"U8\" [2,2,4]. Send images in RGB.");
}

TEST_CASE("a body that is truncated anywhere is refused") {
  const std::string header = "{" + entry("a", "U8", "[2,2,3]", "[0,12]") + "}";
  const Bytes body = body_of(header, 12);
  REQUIRE(read_image_tensors(body).size() == 1);
  for (std::size_t size = 0; size < body.size(); ++size) {
    CHECK(is_in("hybrid_rt[serve]: ", failure(Bytes(body.begin(), body.begin() + static_cast<std::ptrdiff_t>(size)))));
  }
  CHECK(is_in("1 bytes more", failure(body_of(header, 13))));
}

TEST_CASE("the header's length is checked before it is used") {
  const std::string header = "{" + entry("a", "U8", "[1,1,3]", "[0,3]") + "}";
  CHECK(is_in("at most 65536 bytes, got 18446744073709551615",
              failure(body_of(header, 3, std::numeric_limits<std::uint64_t>::max()))));
  CHECK(is_in("at most 65536 bytes, got 65537", failure(body_of(header, 3, 65537))));
  CHECK(is_in("a header of 65536 bytes", failure(body_of(header, 3, 65536))));
  CHECK(is_in("at most 10 bytes", failure(body_of(header, 3), {.max_header_bytes = 10})));
  CHECK(is_in("a JSON object as header", failure(body_of(header, 3, 0))));
}

TEST_CASE("a header that is not a JSON object is refused") {
  const std::string good = "{" + entry("a", "U8", "[1,1,3]", "[0,3]") + "}";
  CHECK(is_in("a JSON object", failure(" " + good, 3)));
  CHECK(is_in("a JSON object", failure("\xEF\xBB\xBF" + good, 3)));
  CHECK(is_in("a JSON object", failure("[" + good + "]", 3)));
  CHECK(is_in("JSON as header, got a mistake at its byte 2", failure("{'a':1}", 3)));
  CHECK(is_in("JSON as header", failure(good + "}", 3)));
  CHECK(is_in("JSON as header", failure("{\"\xFF\":1}", 0)));
  CHECK(is_in("JSON as header", failure("{\"a\":/**/1}", 0)));
  CHECK(is_in("a number that is too large", failure("{\"a\":1e999}", 0)));
  CHECK(is_in("deeper nesting", failure("{\"a\":" + std::string(30'000, '['), 0)));
  CHECK(is_in("deeper nesting", failure(R"({"a":{"b":{"c":{}}}})", 0)));
}

TEST_CASE("a duplicate name is refused") {
  const std::string a = entry("a", "U8", "[1,1,3]", "[0,3]");
  CHECK(is_in("stands once, got \"a\" twice", failure("{" + a + "," + a + "}", 3)));
  CHECK(is_in("stands once, got \"a\" twice", failure("{" + a + R"(,"\u0061":{}})", 3)));
  CHECK(is_in("stands once, got \"dtype\" twice",
              failure(R"({"a":{"dtype":"F16","dtype":"U8","shape":[1,1,3],"data_offsets":[0,3]}})", 3)));
  CHECK(is_in("stands once, got \"__metadata__\" twice",
              failure(R"({"__metadata__":{},"__metadata__":{},)" + a + "}", 3)));
}

TEST_CASE("a tensor has a dtype, a shape and offsets, and no other field") {
  for (const std::string info : {"1", "null", "[]", "{}", R"({"dtype":"U8","shape":[1,1,3]})",
                                 R"({"dtype":"U8","shape":[1,1,3],"data_offsets":[0,3],"more":1})",
                                 R"({"dtype":"U8","shape":[1,1,3],"offsets":[0,3]})"}) {
    CHECK(is_in("\"data_offsets\" and nothing else, got ", failure("{\"a\":" + info + "}", 3)));
  }
}

TEST_CASE("an unsupported dtype or shape is refused") {
  for (const std::string dtype : {"U16", "F16", "BF16", "F64", "I8", "BOOL", "u8", ""}) {
    CHECK(is_in("got \"" + dtype + "\" [1,1,3]", failure_of_entry(dtype, "[1,1,3]", "[0,3]", 3)));
  }
  CHECK(is_in("got 8 [1,1,3]", failure(R"({"a":{"dtype":8,"shape":[1,1,3],"data_offsets":[0,3]}})", 3)));
  for (const std::string shape : {"[]", "3", "null", "[3]", "[1,3]", "[1,1,1,3]", "[3,1,1]", "[1,1,1]", "[1,1,-3]",
                                  "[-1,-1,3]", "[1.0,1,3]", "[\"1\",1,3]", "[1,1,3.0]", "[99999999999999999999,1,3]"}) {
    CHECK(is_in("U8 [height, width, 3]", failure_of_entry("U8", shape, "[0,3]", 3)));
  }
  CHECK(is_in("F32 [3, height, width]", failure_of_entry("F32", "[1,1,3]", "[0,12]", 12)));
}

TEST_CASE("sizes are limited, and their products do not overflow") {
  CHECK(is_in("at least one pixel, got 3x0", failure_of_entry("U8", "[0,3,3]", "[0,0]", 0)));
  CHECK(is_in("at least one pixel, got 0x3", failure_of_entry("F32", "[3,3,0]", "[0,0]", 0)));
  CHECK(is_in("at most 16384 pixels per side", failure_of_entry("U8", "[16385,1,3]", "[0,49155]", 49155)));
  CHECK(is_in("100000000 in all, got 16384x16384", failure_of_entry("U8", "[16384,16384,3]", "[0,3]", 3)));
  // 2^32 * 2^32 is 0 in 64 bits, as is 2^63 * 2 * 3.
  CHECK(is_in("got 4294967296x4294967296", failure_of_entry("U8", "[4294967296,4294967296,3]", "[0,0]", 0)));
  const ImageTensorLimits none{.max_side = std::numeric_limits<std::int64_t>::max(),
                               .max_pixels = std::numeric_limits<std::int64_t>::max()};
  CHECK(is_in("in all", failure_of_entry("U8", "[4294967296,4294967296,3]", "[0,0]", 0, none)));
  CHECK(is_in("12 bytes for each", failure_of_entry("F32", "[3,1,4611686018427387904]", "[0,0]", 0, none)));
  CHECK(is_in("3 bytes for each", failure_of_entry("U8", "[1,9223372036854775807,3]", "[0,3]", 3, none)));

  const ImageTensorLimits small{.max_side = 4, .max_pixels = 8};
  CHECK(read_image_tensors(body_of("{" + entry("a", "U8", "[2,4,3]", "[0,24]") + "}", 24), small).size() == 1);
  CHECK(
      is_in("at most 4 pixels per side and 8 in all, got 3x3", failure_of_entry("U8", "[3,3,3]", "[0,27]", 27, small)));
  CHECK(is_in("got 1x5", failure_of_entry("F32", "[3,5,1]", "[0,60]", 60, small)));
}

TEST_CASE("offsets lie within the data and fit the shape") {
  for (const std::string offsets :
       {"[0,4]", "[3,0]", "[0]", "[0,1,3]", "[-1,2]", "[0.0,3]", "null", "3", "[0,18446744073709551615]",
        "[18446744073709551615,3]", "[18446744073709551613,0]"}) {
    CHECK(is_in("within the data's 3 bytes", failure_of_entry("U8", "[1,1,3]", offsets, 3)));
  }
  CHECK(is_in("3 bytes for each of 2x1 pixels, got 3 bytes", failure_of_entry("U8", "[1,2,3]", "[0,3]", 3)));
  CHECK(is_in("3 bytes for each of 1x1 pixels, got 4 bytes", failure_of_entry("U8", "[1,1,3]", "[0,4]", 4)));
  CHECK(is_in("12 bytes for each of 1x1 pixels, got 3 bytes", failure_of_entry("F32", "[3,1,1]", "[0,3]", 3)));
}

TEST_CASE("tensors cover the data once and without gaps") {
  const auto two = [](const std::string& a, const std::string& b, std::size_t size) {
    return failure("{" + entry("a", "U8", "[1,1,3]", a) + "," + entry("b", "U8", "[1,1,3]", b) + "}", size);
  };
  CHECK(is_in("tensor \"b\": expected data that begins where the data before it ends, got a gap of 1 bytes",
              two("[0,3]", "[4,7]", 7)));
  CHECK(is_in("tensor \"a\": expected data that begins where the data before it ends, got a gap of 2 bytes",
              two("[2,5]", "[5,8]", 8)));
  CHECK(is_in("got an overlap", two("[0,3]", "[2,5]", 5)));
  CHECK(is_in("got an overlap", two("[0,3]", "[0,3]", 3)));
  CHECK(is_in("no data but the tensors', got 2 bytes more", two("[3,6]", "[0,3]", 8)));
}

TEST_CASE("images are counted before their data is read") {
  std::string header = "{";
  for (int i = 0; i < 3; ++i) {
    const std::string offsets = "[" + std::to_string(3 * i) + "," + std::to_string(3 * i + 3) + "]";
    header += (i > 0 ? "," : "") + entry(std::to_string(i), "U8", "[1,1,3]", offsets);
  }
  CHECK(read_image_tensors(body_of(header + "}", 9), {.max_images = 3}).size() == 3);
  CHECK(read_image_tensors(body_of(header + R"(,"__metadata__":{}})", 9), {.max_images = 3}).size() == 3);
  CHECK(is_in("1 to 2 images, got more", failure(header + "}", 9, {.max_images = 2})));
  CHECK(is_in("1 to 16 images, got none", failure("{}", 0)));
  CHECK(is_in("1 to 16 images, got none", failure(R"({"__metadata__":{}})", 0)));

  std::string many = R"({"__metadata__":{)";
  for (int i = 0; i < 101; ++i) many += (i > 0 ? ",\"" : "\"") + std::to_string(i) + R"(":"")";
  CHECK(is_in("at most 100 entries", failure(many + "}}", 0)));
}

TEST_CASE("messages quote the request only as short valid UTF-8") {
  // Two bytes each, so that a cut after 60 bytes falls either between or within characters.
  for (const std::string start : {"", "x"}) {
    std::string name = start;
    for (int i = 0; i < 1000; ++i) name += "\xC3\xA9";
    const std::string message = failure("{" + entry(name, "U16", "[1,1,3]", "[0,3]") + "}", 3);
    CHECK(message.size() < 400);
    CHECK(is_in("\xC3\xA9...\"", message));
    CHECK_NOTHROW(nlohmann::json(message).dump());
  }
  const std::string message = failure("{" + entry("\\u0000\\n\\u001b[31m", "U16", "[1,1,3]", "[0,3]") + "}", 3);
  CHECK(is_in("\"???[31m\"", message));
}

TEST_CASE("unaligned data is read correctly") {
  const std::string header = "{" + entry("a", "F32", "[3,1,1]", "[0,12]") + "}";
  for (const std::size_t pad : {0U, 1U, 2U, 3U}) {
    Bytes body = body_of(header + std::string(pad, ' '), 12);
    const float values[3] = {0.0F, 0.25F, 1.0F};
    std::memcpy(body.data() + body.size() - sizeof values, values, sizeof values);
    const std::vector<ImageTensor> images = read_image_tensors(body);
    REQUIRE(images.size() == 1);
    CHECK(std::memcmp(images[0].data.data(), values, sizeof values) == 0);
  }
}

TEST_CASE("floats are pixels from 0 to 1") {
  const auto failure_of_values = [](float value) -> std::string {
    const std::vector<float> values{0, 1, value};
    const std::string header = "{" + entry("a", "F32", "[3,1,1]", "[0,12]") + "}";
    Bytes body = body_of(header, 12);
    std::memcpy(body.data() + body.size() - 12, values.data(), 12);
    const std::vector<ImageTensor> images = read_image_tensors(body);
    try {
      hybrid_rt::serve::check_values(images[0]);
    } catch (const hybrid_rt::serve::PayloadError& error) {
      return error.what();
    }
    return "";
  };
  using Limits = std::numeric_limits<float>;
  for (const float value : {0.0F, -0.0F, 0.5F, 1.0F, 1.0000001F, -0.001F}) CHECK(failure_of_values(value).empty());
  for (const float value : {-0.01F, 1.01F, 255.0F, 3e38F, -3e38F, Limits::infinity(), -Limits::infinity()}) {
    CHECK(is_in("tensor \"a\": expected values in 0..1, got ", failure_of_values(value)));
  }
  CHECK(is_in("got nan", failure_of_values(Limits::quiet_NaN())));
}
