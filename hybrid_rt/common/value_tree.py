"""Arguments and results of a detector as TorchScript's types have them: tensors, plain values, and nests of both."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .errors import CaptureError
from .tensor_tree import Node, build, node_of

_SYMBOLS = {torch.SymInt: "int", torch.SymFloat: "float", torch.SymBool: "bool"}

_PLAIN = (bool, int, float, str)


@dataclass(frozen=True)
class ValueTree:
    """One node of a value.

    Attributes:
        kind: "tensor", "list", "tuple", "dict", "constant", or "int", "float", "bool" for a number that is computed.
        children: of a list, tuple or dict.
        keys: the dict's.
        constant: a number, a text or None.
    """

    kind: str
    children: tuple[ValueTree, ...] = ()
    keys: tuple[str | int, ...] = ()
    constant: Any = None

    @property
    def is_computed(self) -> bool:
        """Whether it is a tensor or a number that differs from call to call."""
        return self.kind in ("tensor", "int", "float", "bool")

    @property
    def annotation(self) -> str:
        """The TorchScript type; ``Any`` for the entries of a list or dict that have several."""
        if self.kind == "tensor":
            return "Tensor"
        if self.kind == "constant":
            return "Optional[Tensor]" if self.constant is None else type(self.constant).__name__
        if self.kind == "tuple":
            return f"Tuple[{', '.join(child.annotation for child in self.children) or '()'}]"
        if self.kind == "list":
            return f"List[{self._entry}]"
        if self.kind == "dict":
            return f"Dict[{type(self.keys[0]).__name__ if self.keys else 'str'}, {self._entry}]"
        return self.kind

    @property
    def _entry(self) -> str:
        types = {child.annotation for child in self.children if child.kind != "constant" or child.constant is not None}
        if len(types) > 1:
            return "Any"
        has_none = any(child.kind == "constant" and child.constant is None for child in self.children)
        (only,) = types or {"Tensor"}
        return f"Optional[{only}]" if has_none else only

    def paths(self, expression: str) -> Iterator[tuple[str, ValueTree]]:
        """Yields each node, outer ones first, with the TorchScript expression that leads to it from ``expression``."""
        yield expression, self
        keys: Sequence[str | int] = self.keys or range(len(self.children))
        for key, child in zip(keys, self.children, strict=True):
            yield from child.paths(f"{expression}[{key!r}]")

    def build(self, computed: Iterator[Any]) -> Any:
        """Returns the value; ``computed`` gives its tensors and numbers in order."""
        if self.is_computed:
            return next(computed)
        if self.kind == "constant":
            return self.constant
        return build(Node(self.kind, self.keys), [child.build(computed) for child in self.children])

    def put_together(self, computed: Iterator[str]) -> str:
        """Returns the TorchScript expression of the value; ``computed`` gives those of its tensors and numbers."""
        if self.is_computed:
            return next(computed)
        if self.kind == "constant":
            return literal(self.constant)
        parts = [child.put_together(computed) for child in self.children]
        if self.kind == "tuple":
            return f"({', '.join(parts)},)" if parts else "()"
        if self.kind == "list":
            written = f"[{', '.join(parts)}]"
        else:
            written = "{" + ", ".join(f"{key!r}: {part}" for key, part in zip(self.keys, parts, strict=True)) + "}"
        return f"torch.jit.annotate({self.annotation}, {written})"


def literal(value: Any) -> str:
    """Returns a plain value as TorchScript's source has it."""
    if isinstance(value, float) and not math.isfinite(value):
        return f"float({str(value)!r})"
    return repr(value)


def opened(value: Any) -> Any:
    """Returns a value with dataclasses as dicts of their fields, at every depth; other leaves stay."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type) and node_of(value) is None:
        value = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    node = node_of(value)
    if node is None:
        return value
    return build(node, [opened(value[key]) for key in node.keys], like=value)


def tree_of(value: Any, where: str, remedy: str) -> tuple[ValueTree, list[Any]]:
    """Returns what a value is made of, and its tensors and computed numbers in order.

    Args:
        value: dataclasses count as dicts of their fields.
        where: the subject of the error.
        remedy: how to go on after the error.

    Raises:
        CaptureError: it holds something that TorchScript has no type for.
    """
    computed: list[Any] = []

    def visit(value: Any, where: str) -> ValueTree:
        if isinstance(value, Tensor) or type(value) in _SYMBOLS:
            computed.append(value)
            return ValueTree("tensor" if isinstance(value, Tensor) else _SYMBOLS[type(value)])
        if value is None or type(value) in _PLAIN:
            return ValueTree("constant", constant=value)
        node = node_of(value)
        if node is None or (node.kind == "dict" and len({type(key) for key in node.keys} & {str, int}) != 1 and value):
            raise CaptureError.make(
                "capture",
                where,
                expected="tensors, numbers, texts and None in lists, tuples, dataclasses and dicts with keys of one type",
                got=f"{type(value).__name__} {value!r}"[:200],
                remedy=remedy,
            )
        children = tuple(visit(value[key], f"{where}[{key!r}]") for key in node.keys)
        return ValueTree(node.kind, children, tuple(node.keys) if node.kind == "dict" else ())

    return visit(opened(value), where), computed
