#include "torchscript/images.h"

#include <doctest/doctest.h>
#include <torch/types.h>

#include <string>
#include <vector>

namespace {

using hybrid_rt::black_images;
using hybrid_rt::guessed_images;
using hybrid_rt::ImageInput;
using hybrid_rt::resize_images;

/// Returns how many tensors of an argument are identified as images by their shapes.
size_t count(const c10::IValue& argument) { return guessed_images({argument}).size(); }

at::Tensor image(at::ScalarType type = at::kFloat) { return torch::zeros({3, 4, 5}, type); }

ImageInput recorded(std::vector<std::optional<std::string>> place, const std::string& layout, bool is_mask = false) {
  return {.place = std::move(place), .layout = layout, .shape = {}, .dtype = "float32", .is_mask = is_mask};
}

std::vector<int64_t> sizes(const c10::IValue& value) { return value.toTensor().sizes().vec(); }

using Sizes = std::vector<int64_t>;

}  // namespace

TEST_CASE("without a record, images are float or uint8 tensors with three or four dimensions") {
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

TEST_CASE("without a record, a list or tuple contains images if it contains nothing else") {
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

TEST_CASE("resized images stay in a list of their type") {
  const c10::IValue images = c10::List<at::Tensor>({image(), torch::zeros({3, 8, 2})});
  const auto found = resize_images({images}, {recorded({"0", std::nullopt}, "CHW")}, {6, 7});
  REQUIRE(found.at(0).isTensorList());
  CHECK(found[0].toTensorVector().at(0).sizes() == Sizes{3, 6, 7});
  CHECK(found[0].toTensorVector().at(1).sizes() == Sizes{3, 6, 7});
}

TEST_CASE("what is not recorded as an image keeps its size, whatever its shape") {
  const at::Tensor texts = torch::rand({1, 5, 16});
  const auto found = resize_images({torch::rand({1, 3, 4, 5}), texts, 3}, {recorded({"0"}, "NCHW")}, {8, 10});
  CHECK(sizes(found.at(0)) == Sizes{1, 3, 8, 10});
  CHECK(found[1].toTensor().is_same(texts));
  CHECK(found[2].toInt() == 3);
}

TEST_CASE("images in any layout are resized along their height and width") {
  for (const std::string layout : {"HW", "CHW", "HWC", "NHW", "NCHW", "NHWC", "NCTHW", "NTHWC", "WHC"}) {
    Sizes before, after;
    for (const char letter : layout) {
      before.push_back(letter == 'H' ? 4 : letter == 'W' ? 6 : 2);
      after.push_back(letter == 'H' ? 8 : letter == 'W' ? 3 : 2);
    }
    CAPTURE(layout);
    const at::Tensor constant = torch::full(before, 0.25);
    const at::Tensor found = resize_images({constant}, {recorded({"0"}, layout)}, {8, 3}).at(0).toTensor();
    CHECK(found.sizes() == after);
    CHECK(found.is_contiguous());
    CHECK(torch::equal(found, torch::full(after, 0.25)));
  }
}

TEST_CASE("images are resized alike with the channels first and last") {
  const at::Tensor first = torch::rand({1, 3, 4, 6});
  const auto as_first = resize_images({first}, {recorded({"0"}, "NCHW")}, {9, 5}).at(0).toTensor();
  const auto as_last = resize_images({first.permute({0, 2, 3, 1})}, {recorded({"0"}, "NHWC")}, {9, 5}).at(0).toTensor();
  CHECK(torch::allclose(as_first, as_last.permute({0, 3, 1, 2})));
}

TEST_CASE("an image in another argument keeps its ratio to the first one, and a mask gets the first one's size") {
  const at::Tensor mask = torch::ones({1, 4, 6}, at::kBool);
  const auto found =
      resize_images({torch::rand({1, 3, 4, 6}), torch::rand({1, 1, 2, 12}), mask},
                    {recorded({"0"}, "NCHW"), recorded({"1"}, "NCHW"), recorded({"2"}, "NHW", true)}, {8, 9});
  CHECK(sizes(found.at(0)) == Sizes{1, 3, 8, 9});
  CHECK(sizes(found.at(1)) == Sizes{1, 1, 4, 18});
  CHECK(sizes(found.at(2)) == Sizes{1, 8, 9});
  CHECK((found[2].toTensor().scalar_type() == at::kBool));
  CHECK(found[2].toTensor().all().item<bool>());
}

TEST_CASE("images are found in dicts by text or number, and in tuples") {
  c10::impl::GenericDict by_name(c10::StringType::get(), c10::AnyType::get());
  by_name.insert("image", torch::rand({3, 4, 6}));
  by_name.insert("height", 4);
  c10::impl::GenericList batch(c10::AnyType::get());
  batch.push_back(by_name);
  const auto listed = resize_images({batch}, {recorded({"0", std::nullopt, "image"}, "CHW")}, {2, 3}).at(0);
  const c10::impl::GenericDict first = listed.toListRef()[0].toGenericDict();
  CHECK(sizes(first.at("image")) == Sizes{3, 2, 3});
  CHECK(first.at("height").toInt() == 4);

  c10::Dict<int64_t, at::Tensor> by_number;
  by_number.insert(8, torch::rand({3, 4, 6}));
  by_number.insert(16, torch::rand({3, 4, 6}));
  const auto numbered = resize_images({by_number}, {recorded({"0", "16"}, "CHW")}, {2, 3}).at(0).toGenericDict();
  CHECK(sizes(numbered.at(8)) == Sizes{3, 4, 6});
  CHECK(sizes(numbered.at(16)) == Sizes{3, 2, 3});

  const auto pair = c10::ivalue::Tuple::create({torch::rand({3, 4, 6}), torch::rand({3, 4, 6})});
  const auto found = resize_images({pair}, {recorded({"0", "1"}, "CHW")}, {2, 3}).at(0).toTupleRef().elements()[1];
  CHECK(sizes(found) == Sizes{3, 2, 3});
}

TEST_CASE("black images have the recorded channels and dtype") {
  const c10::Argument self("self"), batch("x", c10::TensorType::get()), list("y", c10::ListType::ofTensors());
  ImageInput infrared = recorded({"0"}, "NCHW");
  infrared.shape = {1, 4, 8, 8};
  ImageInput listed = recorded({"1", std::nullopt}, "HWC");
  listed.shape = {8, 8, 1};
  listed.dtype = "uint8";
  const auto found = black_images({self, batch, list}, {infrared, listed}, c10::kCPU);
  REQUIRE(found.has_value());
  CHECK(sizes(found->at(0)) == Sizes{1, 4, 8, 8});
  CHECK((found->at(1).toTensorVector().at(0).scalar_type() == at::kByte));
  CHECK_FALSE(black_images({self, batch, list}, {infrared}, c10::kCPU).has_value());
  CHECK_FALSE(black_images({self, list}, {infrared}, c10::kCPU).has_value());
  CHECK_FALSE(black_images({self}, {}, c10::kCPU).has_value());
}
