"""Finds the Python modules that a detector's code is in."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

from torch import nn

_NOT_THE_USERS = ("torch", "hybrid_rt", "builtins")


def namespaces(detector: nn.Module) -> Iterator[dict[str, Any]]:
    """Yields the global names of each loaded Python module of the packages that a detector's classes come from.

    Args:
        detector: The detector. torch, hybrid_rt and the standard library do not count as its packages.
    """
    classes = {kind for part in detector.modules() for kind in type(part).__mro__}
    packages = {kind.__module__.partition(".")[0] for kind in classes} - {*_NOT_THE_USERS, *sys.stdlib_module_names}
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] in packages and isinstance(module, ModuleType):
            yield vars(module)
