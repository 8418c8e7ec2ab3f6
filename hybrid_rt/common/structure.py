"""Describes nested inputs and outputs of a segment (tensors in lists, tuples and dicts) and flattens them."""

from __future__ import annotations

import functools
import inspect
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from .errors import CaptureError
from .tensor_tree import Node, build, node_of, tensors_in

T = TypeVar("T")

Path = tuple[str | int, ...]
"""Keys and indices, outermost first."""


@dataclass(frozen=True)
class Structure:
    """Node of a nested value.

    Attributes:
        kind: "tensor", "list", "tuple", "dict" or "constant".
        children: Entries of a list, tuple or dict.
        keys: Keys of a dict.
        value: Value of a constant: a number, a string or None that an input has in every call.
    """

    kind: str
    children: tuple[Structure, ...] = ()
    keys: tuple[str, ...] | tuple[int, ...] = ()
    value: bool | int | float | str | None = None

    def _nodes(self, path: Path = ()) -> Iterator[tuple[Path, Structure]]:
        """Yields this node and all nodes below it, outer ones first, each with the keys and indices that lead to it."""
        yield path, self
        keys: Sequence[str | int] = self.keys or range(len(self.children))
        for key, child in zip(keys, self.children, strict=True):
            yield from child._nodes((*path, key))

    def _paths(self) -> Iterator[Path]:
        """Yields the path to each tensor."""
        return (path for path, node in self._nodes() if node.kind == "tensor")

    def _fold(self, tensor: Callable[[], T], other: Callable[[Structure, list[T]], T]) -> T:
        """Computes a value bottom-up. ``other`` receives each container or constant and its children's results."""
        if self.kind == "tensor":
            return tensor()
        return other(self, [child._fold(tensor, other) for child in self.children])

    @property
    def count(self) -> int:
        """Returns the number of tensors."""
        return sum(1 for _ in self._paths())

    @property
    def annotation(self) -> str:
        """TorchScript type of the value."""

        def annotated(node: Structure, children: list[str]) -> str:
            if node.kind == "constant":
                return "Optional[Tensor]" if node.value is None else type(node.value).__name__
            if node.kind == "tuple":
                return f"Tuple[{', '.join(children)}]"
            if node.kind == "list":
                return f"List[{children[0]}]"
            return f"Dict[{type(node.keys[0]).__name__}, {children[0]}]"

        return self._fold(lambda: "Tensor", annotated)

    def names(self, prefix: str) -> Iterator[str]:
        """Yields one name per tensor: the prefix, keys and indices that lead to it, joined by dots."""
        return (".".join(map(str, (prefix, *path) if prefix else path)) for path in self._paths())

    def flatten(self, value: Any) -> Iterator[Tensor]:
        """Yields the tensors of a value of this structure, in order."""
        return (functools.reduce(operator.getitem, path, value) for path in self._paths())

    def unflatten(self, tensors: Iterator[Tensor]) -> Any:
        """Builds a value of this structure from its tensors. This is the inverse of :meth:`flatten`."""

        def built(node: Structure, children: list[Any]) -> Any:
            return node.value if node.kind == "constant" else build(Node(node.kind, node.keys), children)

        return self._fold(lambda: next(tensors), built)

    def take_apart(self, expression: str) -> Iterator[str]:
        """Yields TorchScript expressions for the tensors of a value that ``expression`` names."""
        return (_indexed(expression, path) for path in self._paths())

    def put_together(self, tensors: Iterator[str]) -> str:
        """Returns a TorchScript expression that builds a value of this structure from expressions for its tensors."""

        def written(node: Structure, children: list[str]) -> str:
            if node.kind == "constant":
                return repr(node.value)
            if node.kind == "dict":
                items = (f"{key!r}: {child}" for key, child in zip(node.keys, children, strict=True))
                return "{" + ", ".join(items) + "}"
            inner = ", ".join(children)
            return f"[{inner}]" if node.kind == "list" else f"({inner},)"

        return self._fold(lambda: next(tensors), written)

    def lengths(self, expression: str) -> Iterator[tuple[str, int]]:
        """Yields (expression, length) for each list and dict, whose length TorchScript's types do not fix."""
        return (
            (_indexed(expression, path), len(node.children))
            for path, node in self._nodes()
            if node.kind in ("list", "dict")
        )

    def constants(self, expression: str) -> Iterator[tuple[str, bool | int | float | str | None]]:
        """Yields (expression, value) for each constant."""
        return ((_indexed(expression, path), node.value) for path, node in self._nodes() if node.kind == "constant")


def _indexed(expression: str, path: Path) -> str:
    return expression + "".join(f"[{key!r}]" for key in path)


TENSOR = Structure("tensor")

_PLAIN = (bool, int, float, str, type(None))

_SHOWN = 80
"""Maximum number of characters of a value in an error."""

_FEW = 4


def shown(value: Any) -> str:
    """Returns a value's type, and the value if it is short. Modules and caches would print pages."""
    kind = type(value).__name__
    if isinstance(value, str):
        return f"{kind} {value!r}" if len(value) <= _SHOWN else f"{kind} {value[:_SHOWN]!r}..."
    if isinstance(value, _PLAIN):
        return f"{kind} {value!r}"
    if isinstance(value, (list, tuple, dict, set)):
        is_short = len(value) <= _FEW and all(tensor.numel() <= _FEW for tensor in tensors_in(value))
        text = repr(value) if is_short else ""
        return f"{kind} {text}" if text and len(text) <= _SHOWN else f"{kind} of {len(value)}"
    return kind


_REMEDY = "Choose a segment that takes and returns such values, or wrap this one in a module that does."


def structure_of(value: Any, where: str, *, constants: bool = False, remedy: str = _REMEDY) -> Structure:
    """Returns the structure of a value.

    Args:
        value: Any value.
        where: Description of the value, for errors.
        constants: Accept numbers, strings and None too, except in lists, where they tend to be sizes.
        remedy: Last sentence of the error.

    Raises:
        CaptureError: The value contains anything but tensors, lists, tuples and dicts with string or integer keys, or a
            list or dict mixes types, which TorchScript can't hold.
    """
    if isinstance(value, Tensor):
        return TENSOR
    if constants and type(value) in _PLAIN:
        return Structure("constant", value=value)
    node = node_of(value)
    if node is None or not node.keys or (node.kind == "dict" and {*map(type, node.keys)} not in ({str}, {int})):
        raise CaptureError.make(
            "capture",
            where,
            expected="tensors in lists, tuples and dicts with string or integer keys",
            got=shown(value),
            remedy=remedy,
            code="segment-interface",
        )
    inner = constants and node.kind != "list"
    children = tuple(structure_of(value[key], f"{where}[{key!r}]", constants=inner, remedy=remedy) for key in node.keys)
    structure = Structure(node.kind, children, node.keys if node.kind == "dict" else ())
    if structure.kind != "tuple" and len({child.annotation for child in structure.children}) > 1:
        raise CaptureError.make(
            "capture",
            where,
            expected=f"a {structure.kind} with entries of one type, as TorchScript requires",
            got=", ".join(sorted({child.annotation for child in structure.children})),
            remedy="Return a tuple instead.",
            code="segment-interface",
        )
    return structure


class Flattened(torch.nn.Module):
    """Wraps a module as a function that takes tensors and returns a tuple of tensors."""

    def __init__(
        self, module: torch.nn.Module, inputs: Mapping[str, Structure], outputs: Structure | None = None
    ) -> None:
        """Wraps a module.

        Args:
            module: The module.
            inputs: Structure of each parameter that is passed, by name.
            outputs: Structure of the result, if the caller has checked it; None determines it in each call.
        """
        super().__init__()
        self.module = module
        self.inputs = dict(inputs)
        self.outputs = outputs

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Runs the module with tensors in the order of ``inputs`` and returns the tensors of its result."""
        remaining = iter(tensors)
        keyword = {name: structure.unflatten(remaining) for name, structure in self.inputs.items()}
        # Arguments are passed by position where possible, as most callers do: a hook sees only those.
        positional = []
        for name, parameter in inspect.signature(self.module.forward).parameters.items():
            if name not in keyword or parameter.kind is inspect.Parameter.KEYWORD_ONLY:
                break
            positional.append(keyword.pop(name))
        value = self.module(*positional, **keyword)
        outputs = self.outputs or structure_of(value, "output")
        return tuple(outputs.flatten(value))
