"""Functions under ``functools.lru_cache`` and ``functools.cache`` as the plain functions below the cache.

A free size is not hashable, so that a recording with free sizes fails at the cache. With fixed sizes, the cache would
keep tensors without values, and the detector would return them later. TorchScript can't look through it at all.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from ..common.detector_modules import namespaces


@contextmanager
def without_function_caches(detector: nn.Module) -> Iterator[None]:
    """Within it, the cached functions and methods in the Python modules of a detector's packages compute each call."""
    changed: list[tuple[Any, str, Any]] = []
    try:
        for owner, name, value in list(_cached(detector)):
            changed.append((owner, name, value))
            _put(owner, name, _plain(value))
        yield
    finally:
        for owner, name, value in changed:
            _put(owner, name, value)


def _put(owner: Any, name: str, value: Any) -> None:
    if isinstance(owner, dict):
        owner[name] = value
    else:
        setattr(owner, name, value)


def _cached(detector: nn.Module) -> Iterator[tuple[Any, str, Any]]:
    """Yields the place of each cached function: a module's names or a class, the name there, and the function."""
    for names in namespaces(detector):
        yield from ((names, name, value) for name, value in names.items() if _is_cached(value))
        for kind in {value for value in names.values() if isinstance(value, type)}:
            if kind.__module__ == names.get("__name__"):
                yield from ((kind, name, value) for name, value in vars(kind).items() if _is_cached(value))


_BOUND = (staticmethod, classmethod)


def _is_cached(value: Any) -> bool:
    return isinstance(value.__func__ if isinstance(value, _BOUND) else value, functools._lru_cache_wrapper)


def _plain(value: Any) -> Any:
    if not isinstance(value, _BOUND):
        return value.__wrapped__
    cached: Any = value.__func__
    return type(value)(cached.__wrapped__)
