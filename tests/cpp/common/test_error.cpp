#include "hybrid_rt/error.h"

#include <doctest/doctest.h>

#include <string>

using hybrid_rt::Error;
using hybrid_rt::ErrorKind;

TEST_CASE("an error shows control characters of a file as escapes, and is whole") {
  const std::string name("a\0\x1b[31m\r\x7f", 9);
  const Error error(ErrorKind::kBundle, "bundle", "record '" + name + "'", "another name", name, "Copy it again.");
  const std::string shown = "a\\x00\\x1b[31m\\x0d\\x7f";
  CHECK(std::string(error.what()) ==
        "hybrid_rt[bundle]: record '" + shown + "': expected another name, got " + shown + ". Copy it again.");
}

TEST_CASE("an error keeps lines, tabs and characters beyond ASCII") {
  const Error error(ErrorKind::kBackend, "openvino", "plug-in", "to load", "line 1\n\tZ\xc3\xbcrich", "");
  CHECK(std::string(error.what()) == "hybrid_rt[openvino]: plug-in: expected to load, got line 1\n\tZ\xc3\xbcrich.");
}
