"""Replaces Python's number types, and dicts with sizes as keys, in a detector's code while torch.export records it.

Otherwise ``int(x.shape[2])`` would fix a free size permanently, ``isinstance(size, int)`` would be false although it is
true in a normal run, and torch would refuse a size as the key of a dict.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import SymFloat, SymInt, nn

_NOT_THE_USERS = ("torch", "hybrid_rt", "builtins")


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
    classes = {kind for part in module.modules() for kind in type(part).__mro__}
    packages = {kind.__module__.partition(".")[0] for kind in classes} - {*_NOT_THE_USERS, *sys.stdlib_module_names}
    names = {"int": _Int, "float": _Float}
    changed: list[tuple[dict[str, Any], str]] = []
    try:
        for known, python in list(sys.modules.items()):
            if known.partition(".")[0] not in packages or python is None:
                continue
            for name, kind in names.items():
                if name not in vars(python):
                    vars(python)[name] = kind
                    changed.append((vars(python), name))
        yield
    finally:
        for namespace, name in changed:
            del namespace[name]


class SizeCache(dict[Any, Any]):
    """A dict in which a detector caches values by size. Each free size is a separate key."""

    def __init__(self, known: dict[Any, Any]) -> None:
        """Copies the entries of a dict.

        Args:
            known: The dict.
        """
        super().__init__(known)
        self._symbolic: dict[str, Any] = {}

    def __contains__(self, key: Any) -> bool:
        """Returns true if there is an entry for the key."""
        return str(key) in self._symbolic if _is_symbolic(key) else super().__contains__(key)

    def __getitem__(self, key: Any) -> Any:
        """Returns the entry of a key."""
        return self._symbolic[str(key)] if _is_symbolic(key) else super().__getitem__(key)

    def __setitem__(self, key: Any, value: Any) -> None:
        """Stores an entry."""
        if _is_symbolic(key):
            self._symbolic[str(key)] = value
        else:
            super().__setitem__(key, value)

    def get(self, key: Any, default: Any = None) -> Any:
        """Returns the entry of a key, or a default."""
        return self[key] if key in self else default  # noqa: SIM401


def _is_symbolic(key: Any) -> bool:
    return any(map(_is_symbolic, key)) if isinstance(key, tuple) else isinstance(key, (SymInt, SymFloat))


def allow_symbolic_keys(module: nn.Module) -> None:
    """Replaces the dicts of a module and its submodules by ones that accept free sizes as keys."""
    for part in module.modules():
        for name, value in vars(part).items():
            if type(value) is dict and not name.startswith("_forward") and name not in vars(nn.Module()):
                vars(part)[name] = SizeCache(value)
