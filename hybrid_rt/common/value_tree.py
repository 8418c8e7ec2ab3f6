"""Describes arguments and results of a detector by TorchScript types: tensors, plain values, and nests of both."""

from __future__ import annotations

import dataclasses
import math
import operator
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree

from .errors import CaptureError
from .tensor_tree import Node, build, node_of

_SYMBOLS = {torch.SymInt: "int", torch.SymFloat: "float", torch.SymBool: "bool"}

_PLAIN = (bool, int, float, str)


@dataclass(frozen=True)
class ValueTree:
    """Node of a nested value.

    Attributes:
        kind: "tensor", "list", "tuple", "dict", "constant", or "int", "float", "bool" for a computed number.
        children: Entries of a list, tuple or dict.
        keys: Keys of a dict, or fields of a named tuple.
        constant: A number, a string or None.
        named: Name of a named tuple's class in TorchScript; empty for other nodes.
        like: The container itself, for its class.
    """

    kind: str
    children: tuple[ValueTree, ...] = ()
    keys: tuple[str | int, ...] = ()
    constant: Any = None
    named: str = ""
    like: Any = field(default=None, compare=False, repr=False)

    @property
    def is_computed(self) -> bool:
        """True for a tensor, and for a number that differs from call to call."""
        return self.kind in ("tensor", "int", "float", "bool")

    @property
    def annotation(self) -> str:
        """TorchScript type of the value. Entries of a list or dict of several types have the type ``Any``."""
        if self.kind == "tensor":
            return "Tensor"
        if self.kind == "constant":
            return "Optional[Tensor]" if self.constant is None else type(self.constant).__name__
        if self.named:
            return self.named
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

    @property
    def is_mixed(self) -> bool:
        """True for a list or dict with entries of several types, which TorchScript calls ``Any``."""
        return self.kind in ("list", "dict") and self._entry == "Any"

    def paths(self, expression: str) -> Iterator[tuple[str, ValueTree]]:
        """Yields each node, outer ones first, with the TorchScript expression that leads to it from ``expression``."""
        yield expression, self
        keys: Sequence[str | int] = self.keys if self.kind == "dict" else range(len(self.children))
        for key, child in zip(keys, self.children, strict=True):
            yield from child.paths(f"{expression}[{key!r}]")

    def build(self, computed: Iterator[Any]) -> Any:
        """Builds the value. ``computed`` yields its tensors and computed numbers in order."""
        if self.is_computed:
            return next(computed)
        if self.kind == "constant":
            return self.constant
        return build(Node(self.kind, self.keys), [child.build(computed) for child in self.children], like=self.like)

    def definitions(self) -> dict[str, str]:
        """Returns the source of each class that the annotation refers to, inner ones first."""
        found: dict[str, str] = {}
        for child in self.children:
            found |= child.definitions()
        if self.named:
            fields = zip(self.keys, self.children, strict=True)
            lines = [f"    {name}: {child.annotation}" for name, child in fields] or ["    pass"]
            found[self.named] = "\n".join([f"class {self.named}(NamedTuple):", *lines])
        return found

    def put_together(self, computed: Iterator[str]) -> str:
        """Returns a TorchScript expression that builds the value from ``computed``, expressions for computed parts."""
        if self.is_computed:
            return next(computed)
        if self.kind == "constant":
            return literal(self.constant)
        parts = [child.put_together(computed) for child in self.children]
        if self.named:
            return f"{self.named}({', '.join(parts)})"
        if self.kind == "tuple":
            return f"({', '.join(parts)},)" if parts else "()"
        if self.kind == "list":
            written = f"[{', '.join(parts)}]"
        else:
            written = "{" + ", ".join(f"{key!r}: {part}" for key, part in zip(self.keys, parts, strict=True)) + "}"
        return f"torch.jit.annotate({self.annotation}, {written})"


def literal(value: Any) -> str:
    """Returns a plain value as a literal of TorchScript's source."""
    if isinstance(value, float) and not math.isfinite(value):
        return f"float({str(value)!r})"
    return repr(value)


def opened(value: Any) -> Any:
    """Converts instances of the user's own classes into dicts of their fields, or into tuples, at every depth.

    This applies to dataclasses and to classes that are registered with torch.utils._pytree. Other leaves are unchanged.
    """
    if node_of(value) is None and not isinstance(value, type):
        if dataclasses.is_dataclass(value):
            value = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        elif type(value) in _pytree.SUPPORTED_NODES:
            value = _registered(value, _pytree.SUPPORTED_NODES[type(value)])
    node = node_of(value)
    if node is None:
        return value
    children = [opened(value[key]) for key in node.keys]
    return (
        value if all(map(operator.is_, children, map(value.__getitem__, node.keys))) else build(node, children, value)
    )


def _registered(value: Any, registration: Any) -> Any:
    """Converts an instance of a pytree class into a dict if its children have names, otherwise into a tuple."""
    if registration.flatten_with_keys_fn is None:
        return tuple(registration.flatten_fn(value)[0])
    pairs = registration.flatten_with_keys_fn(value)[0]
    names = [getattr(key, "name", getattr(key, "key", None)) for key, _ in pairs]
    if all(isinstance(name, str) for name in names):
        return {name: child for name, (_, child) in zip(names, pairs, strict=True)}
    return tuple(child for _, child in pairs)


def tree_of(value: Any, where: str, remedy: str, *, is_result: bool = False) -> tuple[ValueTree, list[Any]]:
    """Returns the structure of a value, and its tensors and computed numbers in order.

    Args:
        value: An argument or a result.
        where: Subject of the error.
        remedy: Last sentence of the error.
        is_result: Converts the user's own classes, see :func:`opened`, and keeps the names of named tuples. An argument
            must consist of lists, tuples and dicts only, because its caller has to pass them.

    Raises:
        CaptureError: The value contains something that TorchScript has no type for.
    """
    computed: list[Any] = []
    classes: dict[str, list[str]] = {}

    def visit(value: Any, where: str) -> ValueTree:
        if isinstance(value, Tensor) or type(value) in _SYMBOLS:
            computed.append(value)
            return ValueTree("tensor" if isinstance(value, Tensor) else _SYMBOLS[type(value)])
        if value is None or type(value) in _PLAIN:
            return ValueTree("constant", constant=value)
        node = node_of(value)
        keys = {type(key) for key in node.keys} if node else set()
        if node is None or (node.kind == "dict" and keys not in (set(), {str}, {int})):
            raise CaptureError.make(
                "capture",
                where,
                expected="tensors, numbers, strings and None in lists, tuples, dataclasses and dicts with one type of "
                "key",
                got=f"{type(value).__name__} {value!r}"[:200],
                remedy=remedy,
                code="value-not-plain",
            )
        children = tuple(visit(value[key], f"{where}[{key!r}]") for key in node.keys)
        if is_result and hasattr(value, "_fields"):
            types = [f"{name}: {child.annotation}" for name, child in zip(value._fields, children, strict=True)]
            known = classes.setdefault(type(value).__name__, [])
            known += [] if str(types) in known else [str(types)]
            place = known.index(str(types))
            named = f"{type(value).__name__}{f'_{place}' if place else ''}"
            return ValueTree("tuple", children, tuple(value._fields), named=named)
        return ValueTree(node.kind, children, tuple(node.keys) if node.kind == "dict" else (), like=value)

    return visit(opened(value) if is_result else value, where), computed
