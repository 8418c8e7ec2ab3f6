#include "hybrid_rt/plugin/conditions.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <doctest/doctest.h>

#include <algorithm>
#include <string>

#include "failure_of.h"

namespace {

using hybrid_rt::Conditions;

Conditions conditions(const std::string& postfix) {
  const std::string line = "a condition\t" + postfix + "\n";
  at::Tensor text = at::empty({static_cast<int64_t>(line.size())}, at::kByte);
  std::copy(line.begin(), line.end(), text.mutable_data_ptr<uint8_t>());
  return {"test", text, {{.name = "x", .min = {1, 1}, .opt = {4, 6}, .max = {9, 9}}}};
}

bool holds(const std::string& postfix) {
  const Conditions checked = conditions(postfix);
  try {
    checked.check(at::zeros({4, 6}));
  } catch (const hybrid_rt::Error&) {
    return false;
  }
  return true;
}

}  // namespace

TEST_CASE("conditions on sizes are computed as in Python") {
  for (const char* text : {"0.1: 6 ==", "0.0: 0.1: + 10 ==", "0.1: 0.0: % 2 ==", "-7 2 // -4 ==", "-7 2 % 1 ==",
                           "7 -2 // -4 ==", "0.0: 3 < 1 or", "4 0 // 0 =="}) {
    CAPTURE(text);
    CHECK(holds(text));
  }
  CHECK_FALSE(holds("0.1: 7 =="));
}

TEST_CASE("conditions on extreme numbers saturate and never end the process") {
  const std::string least = "-9223372036854775808";
  const std::string most = "9223372036854775807";
  for (const std::string& text :
       {least + " -1 // " + most + " ==", least + " -1 % 0 ==", most + " 9 * " + most + " ==",
        most + " -9 * " + least + " ==", most + " 1 + " + most + " ==", least + " -1 + " + least + " ==",
        least + " 1 - " + least + " ==", most + " -1 - " + most + " ==", "0 " + least + " - " + most + " =="}) {
    CAPTURE(text);
    CHECK(holds(text));
  }
}

TEST_CASE("unreadable conditions are refused") {
  for (const char* text : {"+", "1 +", "1 2", "", "0.7: 1 ==", "3.0: 1 ==", "99999999999999999999 1 ==", "1 2 ^"}) {
    CAPTURE(text);
    CHECK_THROWS_AS(conditions(text), hybrid_rt::Error);
  }
}
