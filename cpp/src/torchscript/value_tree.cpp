#include "torchscript/value_tree.h"

#include <ATen/core/Dict.h>
#include <ATen/core/List.h>
#include <ATen/core/jit_type.h>

#include <cstdint>

namespace hybrid_rt {

std::vector<c10::IValue> elements_of(const c10::IValue& value) {
  return value.isList() ? value.toListRef().vec() : value.toTupleRef().elements().vec();
}

namespace {

/// Returns a dict's key as a part of a path.
std::string key_text(const c10::IValue& key) {
  return key.isString() ? key.toStringRef() : key.isInt() ? std::to_string(key.toInt()) : "?";
}

}  // namespace

void visit_leaves(const c10::IValue& value, const std::string& path, const LeafVisitor& visit) {
  if (value.isGenericDict() && value.toGenericDict().size() > 0) {
    for (const auto& entry : value.toGenericDict()) {
      visit_leaves(entry.value(), path + "." + key_text(entry.key()), visit);
    }
  } else if ((value.isList() || value.isTuple()) && !elements_of(value).empty()) {
    size_t i = 0;
    for (const c10::IValue& element : elements_of(value)) {
      visit_leaves(element, path + "." + std::to_string(i++), visit);
    }
  } else {
    visit(value, path);
  }
}

bool holds_tensor(const c10::IValue& value) {
  bool found = false;
  visit_leaves(value, "", [&found](const c10::IValue& leaf, const std::string&) {
    found = found || (leaf.isTensor() && leaf.toTensor().defined());
  });
  return found;
}

namespace {

/// Returns the type of a named tuple; null for any other tuple. torch throws for a tuple without its own type that
/// contains an undefined tensor, which has no type.
c10::TupleTypePtr named_type(const c10::IValue& tuple) {
  try {
    c10::TupleTypePtr type = tuple.toTupleRef().type();
    return type->schema() != nullptr ? type : nullptr;
  } catch (const c10::Error&) {
    return nullptr;
  }
}

}  // namespace

c10::IValue map_tensors(const c10::IValue& value, const TensorChange& change) {
  if (value.isTensor()) {
    return value.toTensor().defined() ? c10::IValue(change(value.toTensor())) : value;
  }
  if (value.isList()) {
    c10::impl::GenericList list(value.toList().elementType());
    for (const c10::IValue& element : elements_of(value)) list.push_back(map_tensors(element, change));
    return list;
  }
  if (value.isGenericDict()) {
    const c10::impl::GenericDict old = value.toGenericDict();
    c10::impl::GenericDict dict(old.keyType(), old.valueType());
    for (const auto& entry : old) dict.insert(entry.key(), map_tensors(entry.value(), change));
    return dict;
  }
  if (value.isTuple()) {
    std::vector<c10::IValue> elements;
    for (const c10::IValue& element : elements_of(value)) elements.push_back(map_tensors(element, change));
    const c10::TupleTypePtr type = named_type(value);
    if (type != nullptr) return c10::ivalue::Tuple::createNamed(std::move(elements), type);
    return c10::ivalue::Tuple::create(std::move(elements));
  }
  return value;
}

c10::TypePtr without_optional(const c10::TypePtr& type) {
  const bool is_optional = type && type->kind() == c10::TypeKind::OptionalType;
  return is_optional ? type->expectRef<c10::OptionalType>().getElementType() : type;
}

c10::TypePtr child_type(const c10::TypePtr& type, size_t i) {
  if (!type) return nullptr;
  switch (type->kind()) {
    case c10::TypeKind::ListType:
      return type->expectRef<c10::ListType>().getElementType();
    case c10::TypeKind::DictType:
      return type->expectRef<c10::DictType>().getValueType();
    case c10::TypeKind::TupleType: {
      const auto elements = type->expectRef<c10::TupleType>().elements();
      return i < elements.size() ? elements[i] : nullptr;
    }
    default:
      return nullptr;
  }
}

c10::IValue assemble(TreeKind kind, const std::vector<std::string>& keys, std::vector<c10::IValue> children,
                     const c10::TypePtr& type) {
  const bool is_list = type && type->kind() == c10::TypeKind::ListType;
  if (kind == TreeKind::kTuple && !is_list) return c10::ivalue::Tuple::create(std::move(children));
  if (kind == TreeKind::kDict) {
    const bool is_dict = type && type->kind() == c10::TypeKind::DictType;
    const c10::TypePtr inner = is_dict ? type->expectRef<c10::DictType>().getValueType() : c10::AnyType::get();
    const bool has_numbers = is_dict && type->expectRef<c10::DictType>().getKeyType()->kind() == c10::TypeKind::IntType;
    c10::impl::GenericDict dict(has_numbers ? c10::TypePtr(c10::IntType::get()) : c10::StringType::get(), inner);
    for (size_t i = 0; i < children.size(); ++i) {
      const c10::IValue key = has_numbers ? c10::IValue(int64_t{std::stoll(keys.at(i))}) : c10::IValue(keys.at(i));
      dict.insert(key, std::move(children[i]));
    }
    return dict;
  }
  const c10::TypePtr inner = is_list ? type->expectRef<c10::ListType>().getElementType() : c10::AnyType::get();
  c10::impl::GenericList list(inner);
  for (c10::IValue& child : children) list.push_back(std::move(child));
  return list;
}

}  // namespace hybrid_rt
