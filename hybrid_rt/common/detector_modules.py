"""Finds the Python modules and classes that a detector's code is in, and the names that they hold."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import ModuleType
from typing import Any

from torch import nn

_NOT_THE_USERS = ("torch", "hybrid_rt", "builtins")


def _packages(detector: nn.Module) -> set[str]:
    classes = {kind for part in detector.modules() for kind in type(part).__mro__}
    return {kind.__module__.partition(".")[0] for kind in classes} - {*_NOT_THE_USERS, *sys.stdlib_module_names}


def namespaces(detector: nn.Module) -> Iterator[dict[str, Any]]:
    """Yields the global names of each loaded Python module of the packages that a detector's classes come from.

    Args:
        detector: The detector. torch, hybrid_rt and the standard library do not count as its packages.
    """
    packages = _packages(detector)
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] in packages and isinstance(module, ModuleType):
            yield vars(module)


def _classes(detector: nn.Module) -> set[type]:
    """Returns the classes of a detector's packages: those of its modules, and those that their namespaces hold."""
    packages = _packages(detector)
    found = {kind for part in detector.modules() for kind in type(part).__mro__}
    found |= {value for names in namespaces(detector) for value in names.values() if isinstance(value, type)}
    return {kind for kind in found if kind.__module__.partition(".")[0] in packages}


@contextmanager
def replaced_names(detector: nn.Module, replacement: Callable[[str, Any], Any]) -> Iterator[None]:
    """Replaces what the Python modules and classes of a detector's packages hold, within the block.

    Args:
        detector: The detector.
        replacement: Returns the object to take the place of a name's, or None to leave it.
    """
    changed: list[tuple[Any, str, Any]] = []
    try:
        owners: list[dict[str, Any] | type] = [*namespaces(detector), *_classes(detector)]
        for owner in owners:
            for name, value in [*(owner if isinstance(owner, dict) else vars(owner)).items()]:
                other = replacement(name, value)
                if other is not None:
                    with suppress(TypeError):  # an extension's class, which can't be changed
                        _put(owner, name, other)
                        changed.append((owner, name, value))
        yield
    finally:
        for owner, name, value in changed:
            _put(owner, name, value)


def _put(owner: dict[str, Any] | type, name: str, value: Any) -> None:
    if isinstance(owner, dict):
        owner[name] = value
    else:
        type.__setattr__(owner, name, value)  # without what a metaclass does, e.g. that of an Enum
