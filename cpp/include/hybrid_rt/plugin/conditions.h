#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/ArrayRef.h>

#include <string>
#include <vector>

#include "hybrid_rt/error.h"
#include "hybrid_rt/specs.h"

namespace hybrid_rt {

/// Conditions between the sizes of the inputs, beyond their ranges: "input 1's height is half of input 0's". Code that
/// was compiled from an exported program assumes them and would read past the end of a tensor.
class Conditions {
 public:
  /// `backend` is used in messages. `text` has one condition per line: a readable form, a tab, and the same in postfix
  /// notation with `INPUT.DIMENSION:` for a size, e.g. `0.2: 1.2: 2 * ==`. Throws Error(kBackend) for a malformed
  /// condition.
  Conditions(std::string backend, const at::Tensor& text, const std::vector<TensorSpec>& inputs);

  /// Throws Error(kInput) with the text of the first condition that does not hold.
  void check(at::ArrayRef<at::Tensor> inputs) const;

 private:
  struct Step {
    enum class Kind { kNumber, kSize, kOperator } kind;
    int64_t number = 0;  ///< of kSize: the input
    size_t dimension = 0;
    int64_t (*apply)(int64_t, int64_t) = nullptr;
  };
  struct Condition {
    std::string text;
    std::vector<Step> steps;
  };

  Step step_of(const std::string& word, const std::vector<TensorSpec>& inputs) const;
  Error unreadable(const std::string& expected, const std::string& got) const;

  std::string backend_;
  std::vector<Condition> conditions_;
};

}  // namespace hybrid_rt
