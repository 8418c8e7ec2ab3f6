#include "hybrid_rt/plugin/conditions.h"

#include <algorithm>
#include <charconv>
#include <limits>
#include <map>
#include <sstream>
#include <utility>

namespace hybrid_rt {
namespace {

using Operator = int64_t (*)(int64_t, int64_t);

constexpr int64_t kLeast = std::numeric_limits<int64_t>::min();
constexpr int64_t kMost = std::numeric_limits<int64_t>::max();

// Arithmetic saturates at the ends of the range. No size comes near them, but an altered text may.

int64_t add(int64_t a, int64_t b) {
  int64_t result = 0;
  return __builtin_add_overflow(a, b, &result) ? (b < 0 ? kLeast : kMost) : result;
}

int64_t subtract(int64_t a, int64_t b) {
  int64_t result = 0;
  return __builtin_sub_overflow(a, b, &result) ? (b > 0 ? kLeast : kMost) : result;
}

int64_t multiply(int64_t a, int64_t b) {
  int64_t result = 0;
  return __builtin_mul_overflow(a, b, &result) ? ((a < 0) != (b < 0) ? kLeast : kMost) : result;
}

/// Divides and rounds down, as in Python.
int64_t divide(int64_t a, int64_t b) {
  if (b == 0) return 0;
  if (b == -1) return subtract(0, a);
  return a / b - ((a % b != 0 && (a < 0) != (b < 0)) ? 1 : 0);
}

const std::map<std::string, Operator>& operators() {
  static const std::map<std::string, Operator> table{
      {"+", add},
      {"-", subtract},
      {"*", multiply},
      {"//", divide},
      {"%", [](int64_t a, int64_t b) { return b == -1 ? 0 : a - b * divide(a, b); }},
      {"min", [](int64_t a, int64_t b) { return std::min(a, b); }},
      {"max", [](int64_t a, int64_t b) { return std::max(a, b); }},
      {"==", [](int64_t a, int64_t b) { return int64_t{a == b}; }},
      {"!=", [](int64_t a, int64_t b) { return int64_t{a != b}; }},
      {"<", [](int64_t a, int64_t b) { return int64_t{a < b}; }},
      {"<=", [](int64_t a, int64_t b) { return int64_t{a <= b}; }},
      {">", [](int64_t a, int64_t b) { return int64_t{a > b}; }},
      {">=", [](int64_t a, int64_t b) { return int64_t{a >= b}; }},
      {"and", [](int64_t a, int64_t b) { return int64_t{a && b}; }},
      {"or", [](int64_t a, int64_t b) { return int64_t{a || b}; }},
  };
  return table;
}

std::string sizes_of(at::ArrayRef<at::Tensor> inputs) {
  std::ostringstream text;
  for (size_t i = 0; i < inputs.size(); ++i) text << (i ? ", " : "") << inputs[i].sizes();
  return text.str();
}

}  // namespace

Conditions::Conditions(std::string backend, const at::Tensor& text, const std::vector<TensorSpec>& inputs)
    : backend_(std::move(backend)) {
  if (text.numel() == 0) return;
  std::istringstream lines(
      std::string(reinterpret_cast<const char*>(text.const_data_ptr()), static_cast<size_t>(text.numel())));
  for (std::string line; std::getline(lines, line);) {
    const size_t tab = line.find('\t');
    if (tab == std::string::npos) throw unreadable("a text, a tab and a condition", line);
    Condition condition{line.substr(0, tab), {}};
    std::istringstream words(line.substr(tab + 1));
    size_t depth = 0;
    for (std::string word; words >> word;) {
      condition.steps.push_back(step_of(word, inputs));
      const bool is_operator = condition.steps.back().kind == Step::Kind::kOperator;
      if (is_operator && depth < 2) throw unreadable("two values before each operator", line);
      depth = is_operator ? depth - 1 : depth + 1;
    }
    if (depth != 1) throw unreadable("a condition with one result", line);
    conditions_.push_back(std::move(condition));
  }
}

Conditions::Step Conditions::step_of(const std::string& word, const std::vector<TensorSpec>& inputs) const {
  if (const auto found = operators().find(word); found != operators().end()) {
    return {Step::Kind::kOperator, 0, 0, found->second};
  }
  int64_t number = 0;
  const char* const end = word.data() + word.size();
  const auto first = std::from_chars(word.data(), end, number);
  if (first.ec != std::errc()) throw unreadable("a number, a size or an operator", word);
  if (first.ptr == end) return {Step::Kind::kNumber, number, 0, nullptr};
  size_t dimension = 0;
  const auto second = *first.ptr == '.' ? std::from_chars(first.ptr + 1, end, dimension) : first;
  const bool is_size = *first.ptr == '.' && second.ec == std::errc() && second.ptr + 1 == end && *second.ptr == ':';
  if (!is_size || number < 0 || static_cast<size_t>(number) >= inputs.size() ||
      dimension >= inputs[static_cast<size_t>(number)].min.size()) {
    throw unreadable("a size of one of the inputs", word);
  }
  return {Step::Kind::kSize, number, dimension, nullptr};
}

Error Conditions::unreadable(const std::string& expected, const std::string& got) const {
  return Error(ErrorKind::kBackend, backend_, "artifact, conditions", expected, "'" + got + "'",
               "Convert the detector again: the artifact was made by another version of hybrid_rt.");
}

void Conditions::check(at::ArrayRef<at::Tensor> inputs) const {
  std::vector<int64_t> values;
  for (const Condition& condition : conditions_) {
    values.clear();
    for (const Step& step : condition.steps) {
      if (step.kind == Step::Kind::kNumber) {
        values.push_back(step.number);
      } else if (step.kind == Step::Kind::kSize) {
        values.push_back(inputs[static_cast<size_t>(step.number)].size(static_cast<int64_t>(step.dimension)));
      } else {
        const int64_t right = values.back();
        values.pop_back();
        values.back() = step.apply(values.back(), right);
      }
    }
    if (values.front() == 0) {
      throw Error(ErrorKind::kInput, backend_, "inputs", condition.text, sizes_of(inputs),
                  "Resize the images: the segment supports only such sizes.");
    }
  }
}

}  // namespace hybrid_rt
