"""Python's own types for numbers, and dicts by size, as a detector's code meets them while torch.export records it.

``int(x.shape[2])`` would make a free size a whole number for good, ``isinstance(size, int)`` would be false where it is
true otherwise, and a size as the key of a dict would be refused.
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
    """Metaclass of a class that stands for int or float."""

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
    """Within it ``int`` and ``float`` leave free sizes free, in all Python modules of the packages of a detector."""
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
    """A dict in which a detector keeps what it made for a size; free sizes are keys of their own."""

    def __init__(self, known: dict[Any, Any]) -> None:
        """``known``: what it holds already."""
        super().__init__(known)
        self._symbolic: dict[str, Any] = {}

    def __contains__(self, key: Any) -> bool:
        """Tells whether there is an entry."""
        return str(key) in self._symbolic if _is_symbolic(key) else super().__contains__(key)

    def __getitem__(self, key: Any) -> Any:
        """Returns an entry."""
        return self._symbolic[str(key)] if _is_symbolic(key) else super().__getitem__(key)

    def __setitem__(self, key: Any, value: Any) -> None:
        """Keeps an entry."""
        if _is_symbolic(key):
            self._symbolic[str(key)] = value
        else:
            super().__setitem__(key, value)

    def get(self, key: Any, default: Any = None) -> Any:
        """As a dict's."""
        return self[key] if key in self else default  # noqa: SIM401


def _is_symbolic(key: Any) -> bool:
    return any(map(_is_symbolic, key)) if isinstance(key, tuple) else isinstance(key, (SymInt, SymFloat))


def free_caches(module: nn.Module) -> None:
    """Lets the dicts by size of a module, and of its submodules, take free sizes as keys."""
    for part in module.modules():
        for name, value in vars(part).items():
            if type(value) is dict and not name.startswith("_forward") and name not in vars(nn.Module()):
                vars(part)[name] = SizeCache(value)
