#include "rle.h"

#include <doctest/doctest.h>

#include <vector>

using hybrid_rt::serve::run_lengths;

// The expected texts are results of pycocotools.mask.encode(numpy.asfortranarray(mask >= 0.5))["counts"].

TEST_CASE("run lengths follow the columns and start with zeros") {
  CHECK(run_lengths(std::vector<float>{0, 0, 1, 1}.data(), 2, 2, 0.5F) == "1110");
  CHECK(run_lengths(std::vector<float>{1, 1, 1, 1}.data(), 2, 2, 0.5F) == "04");
  CHECK(run_lengths(std::vector<float>{0, 0, 0, 0}.data(), 2, 2, 0.5F) == "4");
}

TEST_CASE("a pixel at the threshold is set, a NaN pixel is not") {
  CHECK(run_lengths(std::vector<float>{0.5F, 0.49F}.data(), 2, 1, 0.5F) == "011");
  CHECK(run_lengths(std::vector<float>{__builtin_nanf(""), 0.9F}.data(), 2, 1, 0.5F) == "11");
}

TEST_CASE("long runs take several characters, and later runs are stored as differences") {
  std::vector<float> mask(100 * 100, 0.0F);
  for (int y = 20; y < 80; ++y) {
    for (int x = 30; x < 33; ++x) mask[static_cast<std::size_t>(y * 100 + x)] = 1;
  }
  CHECK(run_lengths(mask.data(), 100, 100, 0.5F) == "\\n2l1X1000h`6");
}
