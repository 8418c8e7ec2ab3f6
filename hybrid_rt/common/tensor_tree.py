"""Values that hold tensors in lists, tuples and dicts, and which of the tensors are images.

This is the one place that knows how to go through such a value, change it and build it; a further container, such as
a class of one's own, is added in :func:`node_of` and :func:`build`. The twin for TorchScript's values in C++ is
cpp/src/torchscript/value_tree.h, with images.h beside it.
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


@dataclass(frozen=True)
class Node:
    """A list, tuple or dict, without its children.

    Attributes:
        kind: "list", "tuple" or "dict".
        keys: the dict's keys, or the indices.
    """

    kind: str
    keys: tuple[Any, ...]


def node_of(value: Any) -> Node | None:
    """Returns what kind of container a value is; None for a leaf, which is anything else."""
    if isinstance(value, Mapping):
        return Node("dict", tuple(value))
    if isinstance(value, (list, tuple)):
        return Node("list" if isinstance(value, list) else "tuple", tuple(range(len(value))))
    return None


def build(node: Node, children: Sequence[Any], like: Any = None) -> Any:
    """Builds a container from its children.

    Args:
        node: its kind and keys.
        children: one per key.
        like: a container of the same kind whose class is kept: a named tuple, such as torch.return_types' too, or a
            subclass of dict.
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
    """Computes something from the leaves up.

    Args:
        value: any value.
        leaf: called with each leaf.
        container: called with each container's node and with what its children gave.

    Returns:
        What the outermost call gave.
    """
    node = node_of(value)
    if node is None:
        return leaf(value)
    return container(node, [fold(value[key], leaf, container) for key in node.keys])


def map_tensors(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Returns the value with each tensor changed; containers keep their class, other leaves stay."""
    node = node_of(value)
    if node is None:
        return change(value) if isinstance(value, Tensor) else value
    children = [map_tensors(value[key], change) for key in node.keys]
    if node.kind == "tuple" and all(map(operator.is_, children, value)):
        return value  # it holds no tensor: a torch.Size stays one
    return build(node, children, like=value)


def plain(value: Any) -> Any:
    """Returns the value as the native part takes it: lists, tuples and dicts with string keys, other leaves as None."""
    return fold(
        value,
        lambda leaf: leaf if isinstance(leaf, Tensor) else None,
        lambda node, children: build(Node(node.kind, tuple(map(str, node.keys))), children),
    )


def is_image(tensor: Tensor) -> bool:
    """Returns whether a tensor is an image [C, H, W] or a batch of images [N, C, H, W]: floats or uint8."""
    return (tensor.is_floating_point() or tensor.dtype == torch.uint8) and tensor.dim() in (3, 4)


def _holds_images(argument: Any) -> bool:
    return (
        isinstance(argument, (list, tuple))
        and len(argument) > 0
        and all(isinstance(entry, Tensor) and entry.dim() == 3 and is_image(entry) for entry in argument)
    )


def map_images(
    arguments: Sequence[Any], change: Callable[[Tensor], Tensor], *, one_more: bool = False
) -> tuple[Any, ...]:
    """Returns a detector's arguments with their images changed.

    Images are arguments themselves (see :func:`is_image`), or make up an argument that is a list or tuple of nothing
    but [C, H, W]. Whatever else an argument holds is not taken for an image.

    Args:
        arguments: the detector's positional arguments.
        change: called with each image, or batch of images.
        one_more: repeat the first image of each list, so that what is counted per image varies too.
    """
    changed: list[Any] = []
    for argument in arguments:
        if isinstance(argument, Tensor) and is_image(argument):
            changed.append(change(argument))
        elif _holds_images(argument):
            images = [*argument, argument[0]] if one_more and isinstance(argument, list) else argument
            changed.append(map_tensors(images, change))
        else:
            changed.append(argument)
    return tuple(changed)


def images_in(arguments: Sequence[Any]) -> list[Tensor]:
    """Returns the images in a detector's arguments, [C, H, W] or batches [N, C, H, W]; see :func:`map_images`."""
    found: list[Tensor] = []

    def note(image: Tensor) -> Tensor:
        found.append(image)
        return image

    map_images(arguments, note)
    return found
