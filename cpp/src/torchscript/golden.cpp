#include "torchscript/golden.h"

#include <cstring>
#include <nlohmann/json.hpp>
#include <utility>

#include "common/damaged.h"
#include "common/dtypes.h"
#include "common/json_text.h"
#include "hybrid_rt/error.h"
#include "torchscript/value_tree.h"

namespace hybrid_rt {
namespace {

using nlohmann::json;

/// Thrown for a description that does not follow docs/format.md.
class Malformed : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

at::Tensor tensor_from(const json& tree, const std::string& data) {
  const auto dtype = dtype_from_name(tree.at("dtype").get<std::string>());
  const auto shape = integers_in(tree.at("shape")).get<std::vector<int64_t>>();
  const auto offset = integers_in(tree.at("offset")).get<uint64_t>();
  const auto size = integers_in(tree.at("size")).get<uint64_t>();
  const std::string stored = tree.at("stored").get<std::string>();
  if (!dtype) throw Malformed("a tensor of an unknown dtype");
  if (offset > data.size() || size > data.size() - offset) throw Malformed("a tensor beyond the record's end");
  const bool is_8_bit = stored == "8 bit";
  if (!is_8_bit && stored != "raw") throw Malformed("a tensor stored as '" + stored + "'");
  uint64_t bytes = is_8_bit ? 1 : c10::elementSize(*dtype);
  for (const int64_t length : shape) {
    if (length < 0 || (length > 0 && bytes > data.size() / static_cast<uint64_t>(length))) {
      throw Malformed("a tensor whose shape does not fit its bytes");
    }
    bytes *= static_cast<uint64_t>(length);
  }
  if (bytes != size) throw Malformed("a tensor whose shape does not fit its bytes");
  at::Tensor tensor = at::empty(shape, at::TensorOptions(is_8_bit ? c10::ScalarType::Byte : *dtype));
  if (size > 0) std::memcpy(tensor.mutable_data_ptr(), data.data() + offset, size);
  return is_8_bit ? tensor.to(at::kFloat).div_(255) : tensor;
}

TreeNode<const json*> node_of(const json* tree) {
  const std::string kind = tree->at("kind").get<std::string>();
  TreeNode<const json*> node;
  if (kind == "tensor" || kind == "value") return node;
  const json& items = tree->at("items");
  if (!items.is_array()) throw Malformed("items that are not a list");
  for (const json& item : items) node.children.push_back(&item);
  if (kind == "dict") {
    node.kind = TreeKind::kDict;
    for (const json& key : tree->at("keys")) {
      node.keys.push_back(key.is_string() ? key.get<std::string>() : std::to_string(integers_in(key).get<int64_t>()));
    }
    if (node.keys.size() != items.size()) throw Malformed("a dict with different numbers of keys and values");
  } else if (kind == "list" || kind == "tuple") {
    node.kind = kind == "list" ? TreeKind::kList : TreeKind::kTuple;
  } else {
    throw Malformed("a value of kind '" + kind + "'");
  }
  return node;
}

c10::IValue plain_value(const json& value, const c10::TypePtr& type) {
  if (value.is_null()) return {};
  if (value.is_boolean()) return value.get<bool>();
  if (value.is_number_integer()) {
    const bool is_float = type && type->kind() == c10::TypeKind::FloatType;
    return is_float ? c10::IValue(value.get<double>()) : c10::IValue(value.get<int64_t>());
  }
  if (value.is_number()) return value.get<double>();
  return value.get<std::string>();
}

/// `type` is the type of forward's argument; null if it is unknown.
c10::IValue value_from(const json& tree, const std::string& data, const c10::TypePtr& type, c10::Device device) {
  return build_value(&tree, type, node_of, [&](const json* leaf, const c10::TypePtr& leaf_type) {
    const bool is_tensor = leaf->at("kind") == "tensor";
    return is_tensor ? c10::IValue(tensor_from(*leaf, data).to(device)) : plain_value(leaf->at("value"), leaf_type);
  });
}

}  // namespace

GoldenSample read_golden(const Archive& archive, const std::vector<c10::Argument>& arguments, c10::Device device) {
  const std::string& path = archive.path();
  if (archive.manifest().golden.empty()) {
    throw Error(ErrorKind::kBundle, "bundle", path, "a golden sample", "none (" + archive.manifest().no_golden + ")",
                "Convert the detector again, or compare with hybrid_rt.verify(detector, path, inputs) in Python.");
  }
  const json description = parse_json(archive.manifest().golden);
  try {
    const std::string data = archive.verified(description.at("record").get<std::string>());
    GoldenSample golden;
    size_t i = 1;  // the first argument is self
    for (const json& input : description.at("inputs")) {
      const c10::TypePtr type = i < arguments.size() ? arguments[i].type() : nullptr;
      golden.inputs.push_back(value_from(input, data, type, device));
      ++i;
    }
    golden.expected = value_from(description.at("expected"), data, nullptr, c10::kCPU);
    golden.precision = description.at("precision").get<std::string>();
    golden.thresholds = Thresholds::from_json(description.at("thresholds").dump());
    golden.compared = description.at("compared").get<bool>();
    return golden;
  } catch (const Error&) {
    throw;
  } catch (const std::exception& error) {  // from json, torch or this file
    const auto* torch_error = dynamic_cast<const c10::Error*>(&error);
    throw damaged(path, "golden sample", "inputs and results as docs/format.md describes them",
                  torch_error ? torch_error->what_without_backtrace() : error.what());
  }
}

}  // namespace hybrid_rt
