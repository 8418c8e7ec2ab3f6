"""Functions under ``functools.lru_cache`` and ``functools.cache`` as the plain functions below the cache.

A free size is not hashable, so that a recording with free sizes fails at the cache. With fixed sizes, the cache would
keep tensors without values, and the detector would return them later. TorchScript can't look through it at all.
"""

from __future__ import annotations

import functools
from contextlib import AbstractContextManager
from typing import Any

from torch import nn

from ..common.detector_modules import replaced_names

_BOUND = (staticmethod, classmethod)


def without_function_caches(detector: nn.Module) -> AbstractContextManager[None]:
    """Within it, the cached functions and methods of a detector's packages compute each call."""
    return replaced_names(detector, _plain)


def _plain(_: str, value: Any) -> Any:
    """Returns the function below a cache; None for anything else."""
    if isinstance(value, functools._lru_cache_wrapper):
        return value.__wrapped__
    if isinstance(value, _BOUND) and isinstance(value.__func__, functools._lru_cache_wrapper):
        cached: Any = value.__func__
        return type(value)(cached.__wrapped__)
    return None
