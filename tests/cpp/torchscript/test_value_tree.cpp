#include "torchscript/value_tree.h"

#include <doctest/doctest.h>
#include <torch/script.h>

#include <string>
#include <utility>
#include <vector>

namespace {

using hybrid_rt::TreeKind;

c10::IValue nested() {
  c10::impl::GenericDict dict(c10::StringType::get(), c10::AnyType::get());
  dict.insert("a", torch::ones({2}));
  dict.insert("b", c10::List<at::Tensor>({torch::ones({1}), torch::ones({3})}));
  return c10::ivalue::Tuple::create({torch::ones({4}), dict, 7, at::Tensor()});
}

std::vector<std::string> paths_of(const c10::IValue& value) {
  std::vector<std::string> paths;
  hybrid_rt::visit_leaves(value, "x", [&](const c10::IValue&, const std::string& path) { paths.push_back(path); });
  return paths;
}

at::Tensor doubled(const at::Tensor& tensor) { return tensor * 2; }

}  // namespace

TEST_CASE("leaves are visited in order, with their paths") {
  CHECK(paths_of(nested()) == std::vector<std::string>{"x.0", "x.1.a", "x.1.b.0", "x.1.b.1", "x.2", "x.3"});
  CHECK(paths_of(torch::ones({1})) == std::vector<std::string>{"x"});
  CHECK(paths_of(c10::List<at::Tensor>()) == std::vector<std::string>{"x"});  // an empty container is a leaf
}

TEST_CASE("only defined tensors count as tensors") {
  CHECK(hybrid_rt::holds_tensor(nested()));
  CHECK_FALSE(hybrid_rt::holds_tensor(at::Tensor()));
  CHECK_FALSE(hybrid_rt::holds_tensor(c10::List<int64_t>({1, 2})));
}

TEST_CASE("tensors are changed, and all other values are kept") {
  const c10::IValue changed = hybrid_rt::map_tensors(nested(), doubled);
  CHECK(paths_of(changed) == paths_of(nested()));
  const auto elements = changed.toTupleRef().elements();
  CHECK(elements[0].toTensor()[0].item<double>() == 2);
  const c10::impl::GenericDict dict = elements[1].toGenericDict();
  CHECK(dict.at("b").isTensorList());
  CHECK(dict.at("b").toTensorVector().at(1)[2].item<double>() == 2);
  CHECK(dict.valueType()->kind() == c10::TypeKind::AnyType);
  CHECK(elements[2].toInt() == 7);
  CHECK_FALSE(elements[3].toTensor().defined());
}

TEST_CASE("a named tuple keeps its name") {
  const auto type =
      c10::TupleType::createNamed(c10::QualifiedName("Found"), std::vector<std::string>{"boxes", "scores"},
                                  std::vector<c10::TypePtr>{c10::TensorType::get(), c10::TensorType::get()});
  const c10::IValue value = c10::ivalue::Tuple::createNamed({torch::ones({1}), torch::ones({1})}, type);
  const c10::IValue changed = hybrid_rt::map_tensors(value, doubled);
  REQUIRE(changed.toTupleRef().type()->schema() != nullptr);
  CHECK(changed.toTupleRef().type()->name()->name() == "Found");
  CHECK(changed.toTupleRef().elements()[1].toTensor().item<double>() == 2);
}

TEST_CASE("a tuple becomes a list with its element type if a list is expected") {
  const auto list = c10::ListType::ofTensors();
  const c10::IValue value = hybrid_rt::assemble(TreeKind::kTuple, {}, {torch::ones({1})}, list);
  CHECK(value.isTensorList());
  CHECK(hybrid_rt::assemble(TreeKind::kTuple, {}, {torch::ones({1})}, nullptr).isTuple());
  // doctest can't print types, so each comparison is made before it is checked.
  const bool is_tensor = *hybrid_rt::child_type(list, 5) == *c10::TensorType::get();
  CHECK(is_tensor);
  const bool has_no_child = hybrid_rt::child_type(c10::TensorType::get(), 0) == nullptr;
  CHECK(has_no_child);
  const bool is_list = *hybrid_rt::without_optional(c10::OptionalType::create(list)) == *list;
  CHECK(is_list);
}
