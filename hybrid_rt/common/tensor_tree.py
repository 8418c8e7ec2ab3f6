"""Traverses, changes and builds values that contain tensors in lists, tuples and dicts.

No other module knows how to do this. To support another container, extend :func:`node_of` and :func:`build`. The
counterpart for TorchScript's values in C++ is cpp/src/torchscript/value_tree.h.
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from torch import Tensor

T = TypeVar("T")


@dataclass(frozen=True)
class Node:
    """A list, tuple or dict without its children.

    Attributes:
        kind: "list", "tuple" or "dict".
        keys: Keys of the dict, or the indices.
    """

    kind: str
    keys: tuple[Any, ...]


def node_of(value: Any) -> Node | None:
    """Returns the kind and keys of a container; None for anything else, which is a leaf."""
    if isinstance(value, Mapping):
        return Node("dict", tuple(value))
    if isinstance(value, (list, tuple)):
        return Node("list" if isinstance(value, list) else "tuple", tuple(range(len(value))))
    return None


def build(node: Node, children: Sequence[Any], like: Any = None) -> Any:
    """Builds a container from its children.

    Args:
        node: Kind and keys of the container.
        children: One per key.
        like: A container of the same kind whose class the result gets: a named tuple, including those of
            torch.return_types, or a subclass of dict.
    """
    if node.kind == "list":
        return list(children)
    if node.kind == "tuple":
        if hasattr(like, "_fields"):
            return type(like)(*children)
        return type(like)(children) if hasattr(like, "n_fields") else tuple(children)
    if not isinstance(like, dict) or type(like) is dict:
        return dict(zip(node.keys, children, strict=True))
    built = copy.copy(like)
    for key, child in zip(node.keys, children, strict=True):
        built[key] = child
    return built


def leaves(value: Any) -> Iterator[Any]:
    """Yields everything in the value that is not a container, in order."""
    node = node_of(value)
    if node is None:
        yield value
        return
    for key in node.keys:
        yield from leaves(value[key])


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Yields the tensors in the value, in order."""
    return (leaf for leaf in leaves(value) if isinstance(leaf, Tensor))


def fold(value: Any, leaf: Callable[[Any], T], container: Callable[[Node, list[T]], T]) -> T:
    """Computes a value bottom-up.

    Args:
        value: Any value.
        leaf: Called with each leaf.
        container: Called with each container's node and its children's results.

    Returns:
        The result of the outermost call.
    """
    node = node_of(value)
    if node is None:
        return leaf(value)
    return container(node, [fold(value[key], leaf, container) for key in node.keys])


def map_tensors(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Applies a function to each tensor of a value. Containers keep their class, other leaves are unchanged."""
    return map_places(value, lambda _, tensor: change(tensor))


def places_of(value: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """Yields each leaf with the keys and indices that lead to it."""
    node = node_of(value)
    if node is None:
        yield place, value
        return
    for key in node.keys:
        yield from places_of(value[key], (*place, key))


def map_places(value: Any, change: Callable[[tuple[Any, ...], Tensor], Tensor], place: tuple[Any, ...] = ()) -> Any:
    """Applies a function to each tensor of a value, like :func:`map_tensors`, but also passes the tensor's place."""
    node = node_of(value)
    if node is None:
        return change(place, value) if isinstance(value, Tensor) else value
    children = [map_places(value[key], change, (*place, key)) for key in node.keys]
    if node.kind == "tuple" and all(map(operator.is_, children, value)):
        return value  # nothing changed: a torch.Size stays a torch.Size
    return build(node, children, like=value)


def plain(value: Any) -> Any:
    """Returns a value as native code takes it: lists, tuples and dicts with string keys, None for objects."""
    return fold(
        value,
        lambda leaf: leaf if isinstance(leaf, (Tensor, bool, int, float, str)) else None,
        lambda node, children: build(Node(node.kind, tuple(map(str, node.keys))), children),
    )
