#pragma once

#include <ATen/core/ivalue.h>

#include <cstddef>
#include <functional>
#include <string>
#include <utility>
#include <vector>

// Values of TorchScript that hold tensors in lists, tuples and dicts: the one place that knows how to go through them,
// change them and build them. Its twin for Python's values is hybrid_rt/common/tensor_tree.py.

namespace hybrid_rt {

/// The elements of a list or tuple.
std::vector<c10::IValue> elements_of(const c10::IValue& value);

/// Receives a leaf (neither a list, tuple nor dict, or an empty one), and the keys and indices to it, joined by dots.
using LeafVisitor = std::function<void(const c10::IValue& leaf, const std::string& path)>;

/// Calls `visit` for each leaf, in order. `path` is the name of the whole value.
void visit_leaves(const c10::IValue& value, const std::string& path, const LeafVisitor& visit);

/// Returns whether a leaf is a tensor that is defined.
bool holds_tensor(const c10::IValue& value);

using TensorChange = std::function<at::Tensor(const at::Tensor&)>;

/// Returns the value with each defined tensor changed. Lists, tuples and dicts keep their types; other leaves stay.
c10::IValue map_tensors(const c10::IValue& value, const TensorChange& change);

enum class TreeKind { kLeaf, kList, kTuple, kDict };

/// A node of a tree in another form, such as JSON or Python's objects. `keys` are the dict's.
template <class Source>
struct TreeNode {
  TreeKind kind = TreeKind::kLeaf;
  std::vector<std::string> keys;
  std::vector<Source> children;
};

/// Returns the type inside of an optional type; any other type as it is.
c10::TypePtr without_optional(const c10::TypePtr& type);

/// Returns the type of child `i` of a list, tuple or dict type; null if `type` does not tell.
c10::TypePtr child_type(const c10::TypePtr& type, size_t i);

/// Builds a list, tuple or dict. A tuple where `type` is a list becomes a list, as Python's callers pass either.
c10::IValue assemble(TreeKind kind, const std::vector<std::string>& keys, std::vector<c10::IValue> children,
                     const c10::TypePtr& type);

/// Builds the value that a tree in another form describes.
/// \param type  of the value, as far as it is known; null: nothing is.
/// \param read  (source) -> TreeNode<Source>
/// \param leaf  (source, type) -> c10::IValue
template <class Source, class Read, class Leaf>
c10::IValue build_value(const Source& source, const c10::TypePtr& type, const Read& read, const Leaf& leaf) {
  const c10::TypePtr plain_type = without_optional(type);
  const TreeNode<Source> node = read(source);
  if (node.kind == TreeKind::kLeaf) return leaf(source, plain_type);
  std::vector<c10::IValue> children;
  for (size_t i = 0; i < node.children.size(); ++i) {
    children.push_back(build_value(node.children[i], child_type(plain_type, i), read, leaf));
  }
  return assemble(node.kind, node.keys, std::move(children), plain_type);
}

}  // namespace hybrid_rt
