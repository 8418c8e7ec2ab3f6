"""Nested inputs and outputs of a segment (tensors in lists, tuples and dicts) and their flat form."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .errors import CaptureError


@dataclass(frozen=True)
class Structure:
    """One node: ``kind`` is "tensor", "list", "tuple" or "dict"; ``keys`` are the dict's."""

    kind: str
    children: tuple[Structure, ...] = ()
    keys: tuple[str, ...] = ()

    @property
    def count(self) -> int:
        """How many tensors it holds."""
        return 1 if self.kind == "tensor" else sum(child.count for child in self.children)

    @property
    def annotation(self) -> str:
        """The TorchScript type."""
        if self.kind == "tensor":
            return "Tensor"
        if self.kind == "tuple":
            return f"Tuple[{', '.join(child.annotation for child in self.children)}]"
        inner = self.children[0].annotation
        return f"List[{inner}]" if self.kind == "list" else f"Dict[str, {inner}]"

    def names(self, prefix: str) -> Iterator[str]:
        """A name a tensor: the keys and indices that lead to it."""
        if self.kind == "tensor":
            yield prefix
        for key, child in zip(self.keys or map(str, range(len(self.children))), self.children, strict=True):
            yield from child.names(f"{prefix}.{key}" if prefix else key)

    def flatten(self, value: Any) -> Iterator[Tensor]:
        """The tensors of a value of this structure, in order."""
        if self.kind == "tensor":
            yield value
        for key, child in zip(self.keys or range(len(self.children)), self.children, strict=True):
            yield from child.flatten(value[key])

    def unflatten(self, tensors: Iterator[Tensor]) -> Any:
        """The inverse of :meth:`flatten`."""
        if self.kind == "tensor":
            return next(tensors)
        children = [child.unflatten(tensors) for child in self.children]
        if self.kind == "dict":
            return dict(zip(self.keys, children, strict=True))
        return tuple(children) if self.kind == "tuple" else children

    def take_apart(self, expression: str) -> Iterator[str]:
        """TorchScript expressions for the tensors of a value that ``expression`` names."""
        if self.kind == "tensor":
            yield expression
        keys = [repr(key) for key in self.keys] or [str(i) for i in range(len(self.children))]
        for key, child in zip(keys, self.children, strict=True):
            yield from child.take_apart(f"{expression}[{key}]")

    def put_together(self, tensors: Iterator[str]) -> str:
        """A TorchScript expression that builds a value of this structure from expressions for its tensors."""
        if self.kind == "tensor":
            return next(tensors)
        children = [child.put_together(tensors) for child in self.children]
        if self.kind == "dict":
            return "{" + ", ".join(f"{key!r}: {child}" for key, child in zip(self.keys, children, strict=True)) + "}"
        inner = ", ".join(children)
        return f"[{inner}]" if self.kind == "list" else f"({inner},)"

    def lengths(self, expression: str) -> Iterator[tuple[str, int]]:
        """(expression, length) of each list and dict in it, whose length TorchScript's types do not fix."""
        if self.kind in ("list", "dict"):
            yield expression, len(self.children)
        keys = [repr(key) for key in self.keys] or [str(i) for i in range(len(self.children))]
        for key, child in zip(keys, self.children, strict=True):
            yield from child.lengths(f"{expression}[{key}]")


TENSOR = Structure("tensor")


def structure_of(value: Any, where: str) -> Structure:
    """The structure of a value.

    Raises:
        CaptureError: it holds anything but tensors, lists, tuples and dicts with string keys, or a list or dict mixes
            types, which TorchScript can't hold.
    """
    if isinstance(value, Tensor):
        return TENSOR
    if isinstance(value, Mapping) and value and all(isinstance(key, str) for key in value):
        structure = Structure(
            "dict",
            tuple(structure_of(child, f"{where}[{key!r}]") for key, child in value.items()),
            tuple(value),
        )
    elif isinstance(value, (list, tuple)) and value:
        kind = "list" if isinstance(value, list) else "tuple"
        structure = Structure(kind, tuple(structure_of(child, f"{where}[{i}]") for i, child in enumerate(value)))
    else:
        raise CaptureError.make(
            "capture",
            where,
            expected="tensors in lists, tuples and dicts with string keys",
            got=f"{type(value).__name__} {value!r}"[:200],
            remedy="Choose a segment that takes and returns such values, or wrap this one in a module that does.",
        )
    if structure.kind != "tuple" and len({child.annotation for child in structure.children}) > 1:
        raise CaptureError.make(
            "capture",
            where,
            expected=f"a {structure.kind} of one type, as TorchScript has them",
            got=", ".join(sorted({child.annotation for child in structure.children})),
            remedy="Return a tuple instead.",
        )
    return structure


def map_tensors(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """The value with each tensor in its lists, tuples and dicts changed; what is none of these stays."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, Mapping):
        return {key: map_tensors(child, change) for key, child in value.items()}
    if isinstance(value, (list, tuple)):
        children = [map_tensors(child, change) for child in value]
        return children if isinstance(value, list) else tuple(children)
    return value


class Flattened(torch.nn.Module):
    """A module as a function of flat tensors, which returns a flat tuple of tensors."""

    def __init__(
        self, module: torch.nn.Module, inputs: Mapping[str, Structure], outputs: Structure | None = None
    ) -> None:
        """``inputs``: each parameter that is passed, with its structure; ``outputs``: checked by the caller."""
        super().__init__()
        self.module = module
        self.inputs = dict(inputs)
        self.outputs = outputs

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Runs the module."""
        remaining = iter(tensors)
        keyword = {name: structure.unflatten(remaining) for name, structure in self.inputs.items()}
        # By position as far as possible, as most callers do: a hook sees what is passed by position only.
        positional = []
        for name, parameter in inspect.signature(self.module.forward).parameters.items():
            if name not in keyword or parameter.kind is inspect.Parameter.KEYWORD_ONLY:
                break
            positional.append(keyword.pop(name))
        value = self.module(*positional, **keyword)
        outputs = self.outputs or structure_of(value, "output")
        return tuple(outputs.flatten(value))
