"""Replaces Python's number types in a detector's code while torch.export records it.

Otherwise ``int(x.shape[2])`` would fix a free size permanently, and ``isinstance(size, int)`` would be false although
it is true in a normal run.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import SymFloat, SymInt, nn

from ..common.detector_modules import namespaces


class _KeepsSymbols(type):
    """Metaclass of a class that replaces int or float."""

    stands_for: type
    symbol: type

    def __call__(cls, *arguments: Any, **keywords: Any) -> Any:
        if len(arguments) == 1 and isinstance(arguments[0], (SymInt, SymFloat)):
            return cls.of_symbol(arguments[0])  # type: ignore[attr-defined]
        return cls.stands_for(*arguments, **keywords)

    def __instancecheck__(cls, value: Any) -> bool:
        return isinstance(value, (cls.stands_for, cls.symbol))

    def __subclasscheck__(cls, other: type) -> bool:
        return issubclass(other, cls.stands_for)

    def __eq__(cls, other: object) -> bool:
        return other is cls or other is cls.stands_for

    def __hash__(cls) -> int:
        return hash(cls.stands_for)


class _Int(int, metaclass=_KeepsSymbols):
    stands_for = int
    symbol = SymInt

    of_symbol = staticmethod(torch.sym_int)


class _Float(float, metaclass=_KeepsSymbols):
    stands_for = float
    symbol = SymFloat

    of_symbol = staticmethod(torch.sym_float)


@contextmanager
def symbolic_numbers(module: nn.Module) -> Iterator[None]:
    """Makes ``int`` and ``float`` keep free sizes free, in all Python modules of a detector's packages."""
    names = {"int": _Int, "float": _Float}
    changed: list[tuple[dict[str, Any], str]] = []
    try:
        for namespace in namespaces(module):
            for name, kind in names.items():
                if name not in namespace:
                    namespace[name] = kind
                    changed.append((namespace, name))
        yield
    finally:
        for namespace, name in changed:
            del namespace[name]
