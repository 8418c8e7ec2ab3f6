#pragma once

#include <ATen/core/ivalue.h>

#include <cstddef>
#include <functional>
#include <string>
#include <utility>
#include <vector>

// Traverses, changes and builds TorchScript values that contain tensors in lists, tuples and dicts. No other code knows
// how to do this. Its counterpart for Python's values is hybrid_rt/common/tensor_tree.py.

namespace hybrid_rt {

/// Returns the elements of a list or tuple.
std::vector<c10::IValue> elements_of(const c10::IValue& value);

/// Receives a leaf (neither a list, tuple nor dict, or an empty one), and the keys and indices to it, joined by dots.
using LeafVisitor = std::function<void(const c10::IValue& leaf, const std::string& path)>;

/// Calls `visit` for each leaf, in order. `path` is the name of the whole value.
void visit_leaves(const c10::IValue& value, const std::string& path, const LeafVisitor& visit);

/// Returns true for a leaf that is a defined tensor.
bool holds_tensor(const c10::IValue& value);

using TensorChange = std::function<at::Tensor(const at::Tensor&)>;

/// Applies a function to each defined tensor of a value. Lists, tuples and dicts keep their types; other leaves are
/// unchanged.
c10::IValue map_tensors(const c10::IValue& value, const TensorChange& change);

enum class TreeKind { kLeaf, kList, kTuple, kDict };

/// A node of a tree in another form, such as JSON or Python's objects. `keys` are the keys of a dict.
template <class Source>
struct TreeNode {
  TreeKind kind = TreeKind::kLeaf;
  std::vector<std::string> keys;
  std::vector<Source> children;
};

/// Returns the element type of an optional type; any other type unchanged.
c10::TypePtr without_optional(const c10::TypePtr& type);

/// Returns the type of child `i` of a list, tuple or dict type; null if `type` does not say.
c10::TypePtr child_type(const c10::TypePtr& type, size_t i);

/// Builds a list, tuple or dict. A tuple becomes a list if `type` is a list, because Python's callers pass either.
c10::IValue assemble(TreeKind kind, const std::vector<std::string>& keys, std::vector<c10::IValue> children,
                     const c10::TypePtr& type);

/// Builds the value that a tree in another form describes.
/// \param type type of the value as far as it is known; null if it is unknown
/// \param read (source) -> TreeNode<Source>
/// \param leaf (source, type) -> c10::IValue
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
