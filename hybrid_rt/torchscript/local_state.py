"""Gives each call of a frozen head its own state, which starts from the attributes' values at conversion.

All threads that call a TorchScript module share one object. A head that kept a grid, a counter or the features of the
last image would return one caller's data to another.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch

from ..common.errors import CaptureError
from .jit import nodes_of, tidy

_Path = tuple[str, ...]


def make_state_local(module: torch.jit.ScriptModule) -> list[str]:
    """Replaces the attributes that a frozen module's code reads and writes by local variables of the call.

    Each variable is a list with one entry. Unlike a plain variable, it needs no special handling in branches and loops.

    Args:
        module: The frozen module. Its graph is modified.

    Returns:
        Dotted paths of the replaced attributes, such as ``grid.rows``.

    Raises:
        CaptureError: The code writes into an object of another class that the module holds.
    """
    graph = module.graph
    reads: dict[_Path, list[Any]] = {}
    writes: dict[_Path, list[Any]] = {}
    for node in nodes_of(graph):
        if node.kind() not in ("prim::GetAttr", "prim::SetAttr"):
            continue
        path = _path_of(node, module)
        if not path:
            _require_own(node, module)
            continue
        if node.kind() == "prim::SetAttr":
            writes.setdefault(path, []).append(node)
        elif node.output().type().kind() != "ClassType":
            reads.setdefault(path, []).append(node)
    if not reads and not writes:
        return []
    first = next(graph.nodes())
    builder = _Builder(graph, first)
    zero = builder.constant(0)
    for path, nodes in reads.items():
        attribute = builder.attribute(nodes[0], path)
        kind = attribute.type()
        value = builder.fresh(attribute, _value_at(module, path))
        cell = builder.node("prim::ListConstruct", [value], torch._C.ListType(kind))
        for node in nodes:
            builder.before(node, "aten::__getitem__", [cell, zero], kind, instead=node)
        for node in writes.get(path, []):
            builder.before(node, "aten::_set_item", [cell, zero, list(node.inputs())[1]], cell.type())
    for node in itertools.chain.from_iterable(writes.values()):
        node.destroy()
    tidy(graph)
    return [".".join(path) for path in {**reads, **writes}]


def _path_of(node: Any, module: torch.jit.ScriptModule) -> _Path:
    """Returns the names from the module to a node's attribute; empty if the path leads through other objects."""
    names, root = _names_from(node)
    if root.unique() != next(module.graph.inputs()).unique():
        return ()
    are_modules = all(isinstance(_value_at(module, names[:i]), torch._C.ScriptModule) for i in range(1, len(names)))
    return tuple(names) if are_modules else ()


def _names_from(node: Any) -> tuple[list[str], Any]:
    """Returns the names that lead to the attribute of a node, and the value that they start from."""
    names = [node.s("name")]
    holder = next(node.inputs())
    while holder.node().kind() == "prim::GetAttr":
        names.insert(0, holder.node().s("name"))
        holder = next(holder.node().inputs())
    return names, holder


def _require_own(node: Any, module: torch.jit.ScriptModule) -> None:
    """Refuses writes into an object that outlives the call. Objects that the call creates are its own.

    Raises:
        CaptureError: The node writes into an object of another class that the module holds.
    """
    names, root = _names_from(node)
    is_kept = root.unique() == next(module.graph.inputs()).unique() or root.node().kind() == "prim::Constant"
    if node.kind() == "prim::SetAttr" and is_kept:
        raise CaptureError.make(
            "capture",
            "the detector's head",
            expected="state in attributes and buffers of modules",
            got=f"a write into '{'.'.join(names)}', of an object of another class",
            remedy="Keep the state in attributes of the module, or create the object in each call.",
            code="keeps-state",
        )


def _value_at(module: torch.jit.ScriptModule, path: Sequence[str]) -> Any:
    held: Any = module._c
    for name in path:
        held = held.getattr(name)
    return held


class _Builder:
    """Adds nodes at the beginning of a graph."""

    def __init__(self, graph: Any, first: Any) -> None:
        self._graph, self._first = graph, first
        self._copies: dict[tuple[Any, ...], Any] = {}

    def constant(self, value: Any) -> Any:
        self._graph.setInsertPoint(self._first)
        return self._graph.insertConstant(value)

    def before(self, place: Any, kind: str, inputs: list[Any], returned: Any, instead: Any = None) -> Any:
        """Adds a node before another one, or instead of it."""
        node = self._graph.create(kind, inputs, 1)
        node.insertBefore(place)
        node.output().setType(returned)
        if instead is not None:
            instead.output().replaceAllUsesWith(node.output())
            instead.destroy()
        return node.output()

    def node(self, kind: str, inputs: list[Any], returned: Any) -> Any:
        return self.before(self._first, kind, inputs, returned)

    def attribute(self, like: Any, path: _Path) -> Any:
        """Adds nodes that read an attribute in the same path as another node."""
        holder = next(iter(self._graph.inputs()))
        for name, returned in zip(path, [*_holders(like), like.output().type()], strict=True):
            node = self._graph.create("prim::GetAttr", [holder], 1)
            node.insertBefore(self._first)
            node.s_("name", name)
            holder = node.output()
            holder.setType(returned)
        return holder

    def fresh(self, value: Any, held: Any) -> Any:
        """Adds nodes that copy the value of an attribute, including all tensors and containers in it."""
        kind = value.type()
        if held is None or isinstance(held, (bool, int, float, str)):
            return value
        if kind.kind() == "OptionalType":
            value = self.node("prim::unchecked_unwrap_optional", [value], kind.getElementType())
            kind = value.type()
        if isinstance(held, torch.Tensor):
            is_dense = held.layout is torch.strided
            # Two attributes may refer to the same tensor; they must still do so.
            memory = (held.data_ptr(), held.shape, held.stride(), held.dtype) if is_dense else (id(held),)
            if not held.numel() or memory not in self._copies:
                self._copies[memory] = self.node("aten::clone", [value, self.constant(None)], kind)
            return self._copies[memory]
        if isinstance(held, list):
            entries = [self.fresh(self._entry(value, i), entry) for i, entry in enumerate(held)]
            return self.node("prim::ListConstruct", entries, kind)
        if isinstance(held, dict):
            pairs: list[Any] = []
            for key, entry in held.items():
                name = self.constant(key)
                taken = self.node("aten::__getitem__", [value, name], kind.getValueType())
                pairs += [name, self.fresh(taken, entry)]
            return self.node("prim::DictConstruct", pairs, kind)
        if isinstance(held, tuple):
            taken = [
                self.node("prim::TupleIndex", [value, self.constant(i)], returned)
                for i, returned in enumerate(kind.elements())
            ]
            return self.node("prim::TupleConstruct", [*map(self.fresh, taken, held)], kind)
        return value

    def _entry(self, value: Any, index: int) -> Any:
        return self.node("aten::__getitem__", [value, self.constant(index)], value.type().getElementType())


def _holders(node: Any) -> list[Any]:
    """Returns the types of the modules between the outermost module and the attribute of a node."""
    types: list[Any] = []
    holder = next(node.inputs())
    while holder.node().kind() == "prim::GetAttr":
        types.insert(0, holder.type())
        holder = next(holder.node().inputs())
    return types
