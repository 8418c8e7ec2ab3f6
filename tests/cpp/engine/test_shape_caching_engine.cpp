#include "hybrid_rt/plugin/shape_caching_engine.h"

#include <ATen/ops/zeros.h>
#include <doctest/doctest.h>

#include <string>
#include <vector>

namespace {

/// Returns copies of its inputs, and counts both ways of running.
class CountingEngine : public hybrid_rt::ShapeCachingEngine {
 public:
  explicit CountingEngine(bool must_copy) : must_copy_(must_copy) {}

  std::string description() const override { return "counting"; }

  int copies = 0;
  std::vector<std::vector<Shape>> into{};

  static bool overlaps(at::ArrayRef<at::Tensor> inputs, const at::Tensor& output) {
    return SharedMemory(inputs).overlaps(output.const_data_ptr(), output.nbytes());
  }

 private:
  CopiedOutputs run_and_copy(at::ArrayRef<at::Tensor> inputs) override {
    ++copies;
    CopiedOutputs copied;
    for (const at::Tensor& input : inputs) copied.outputs.push_back(input.clone());
    copied.must_copy = must_copy_;
    return copied;
  }

  std::vector<at::Tensor> run_into(const std::vector<Shape>& shapes, at::ArrayRef<at::Tensor> inputs) override {
    into.push_back(shapes);
    return {inputs[0].clone()};
  }

  bool must_copy_;
};

}  // namespace

TEST_CASE("output shapes are learned in the first run with each set of input shapes") {
  CountingEngine engine(/*must_copy=*/false);
  const std::vector<at::Tensor> small{at::zeros({1, 2})};
  const std::vector<at::Tensor> large{at::zeros({3, 4})};
  engine.run(small);
  CHECK(engine.copies == 1);
  engine.run(small);
  CHECK(engine.copies == 1);
  engine.run(large);
  CHECK(engine.copies == 2);
  engine.run(large);
  CHECK(engine.copies == 2);
  CHECK(engine.into == std::vector<std::vector<std::vector<std::int64_t>>>{{{1, 2}}, {{3, 4}}});
}

TEST_CASE("an engine whose outputs must be copied never gets an output buffer") {
  CountingEngine engine(/*must_copy=*/true);
  const std::vector<at::Tensor> inputs{at::zeros({1, 2})};
  for (int i = 0; i < 3; ++i) engine.run(inputs);
  CHECK(engine.copies == 3);
  CHECK(engine.into.empty());
}

TEST_CASE("an output that shares an input's memory is detected") {
  const at::Tensor input = at::zeros({8});
  CHECK(CountingEngine::overlaps({input}, input));
  CHECK(CountingEngine::overlaps({input}, input.slice(0, 7, 8)));
  CHECK_FALSE(CountingEngine::overlaps({input.slice(0, 0, 4)}, input.slice(0, 4, 8)));
  CHECK_FALSE(CountingEngine::overlaps({input}, at::zeros({8})));
}
