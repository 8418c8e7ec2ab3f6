#include "torchscript/images.h"

#include <doctest/doctest.h>
#include <torch/types.h>

#include <vector>

namespace {

/// How many tensors of an argument are images.
int count(const c10::IValue& argument) {
  int images = 0;
  hybrid_rt::map_images(argument, [&images](const at::Tensor& tensor) {
    ++images;
    return tensor;
  });
  return images;
}

at::Tensor image(at::ScalarType type = at::kFloat) { return torch::zeros({3, 4, 5}, type); }

}  // namespace

TEST_CASE("images are floats or bytes with three or four dimensions") {
  CHECK(count(image()) == 1);
  CHECK(count(image(at::kByte)) == 1);
  CHECK(count(image(at::kHalf)) == 1);
  CHECK(count(torch::zeros({2, 3, 4, 5})) == 1);
  CHECK(count(image(at::kLong)) == 0);
  CHECK(count(image(at::kBool)) == 0);
  CHECK(count(torch::zeros({4, 5})) == 0);
  CHECK(count(torch::zeros({1, 2, 3, 4, 5})) == 0);
  CHECK(count(at::Tensor()) == 0);
  CHECK(count(3) == 0);
}

TEST_CASE("a list or tuple holds images if it holds nothing else") {
  CHECK(count(c10::List<at::Tensor>({image(), image(at::kByte)})) == 2);
  CHECK(count(c10::ivalue::Tuple::create({image(), image()})) == 2);
  CHECK(count(c10::List<at::Tensor>({image(), torch::zeros({2})})) == 0);
  CHECK(count(c10::List<at::Tensor>({torch::zeros({2, 3, 4, 5})})) == 0);
  CHECK(count(c10::ivalue::Tuple::create({image(), 3})) == 0);
  CHECK(count(c10::List<at::Tensor>()) == 0);
  c10::Dict<std::string, at::Tensor> dict;
  dict.insert("image", image());
  CHECK(count(dict) == 0);
}

TEST_CASE("changed images stay in a list of their type") {
  const auto half = [](const at::Tensor& tensor) { return tensor.slice(1, 0, 2); };
  const c10::IValue changed = hybrid_rt::map_images(c10::List<at::Tensor>({image(), image()}), half);
  REQUIRE(changed.isTensorList());
  CHECK(changed.toTensorVector().at(1).size(1) == 2);
}
