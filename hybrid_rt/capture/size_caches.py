"""Dicts with sizes as keys, in a detector's attributes, classes and Python modules, while torch.export records it.

torch refuses a free size as the key of a dict. With fixed sizes, a dict of a class or Python module would keep tensors
without values, and the detector would return them later.
"""

from __future__ import annotations

import collections
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from torch import SymFloat, SymInt, nn

from ..common.detector_modules import replaced_names


class SizeCache(dict[Any, Any]):
    """A dict in which a detector caches values by size. Each free size is a separate key."""

    def __init__(self, known: dict[Any, Any]) -> None:
        """Copies the entries of a dict.

        Args:
            known: The dict. If it is a defaultdict, missing entries get its default.
        """
        super().__init__(known)
        self._symbolic: dict[str, Any] = {}
        self._default: Callable[[], Any] | None = getattr(known, "default_factory", None)

    def __contains__(self, key: Any) -> bool:
        """Returns true if there is an entry for the key."""
        return str(key) in self._symbolic if _is_symbolic(key) else super().__contains__(key)

    def __getitem__(self, key: Any) -> Any:
        """Returns the entry of a key."""
        if self._default is not None and key not in self:
            self[key] = self._default()
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

    def setdefault(self, key: Any, default: Any = None) -> Any:
        """Returns the entry of a key, which becomes the default if there is none."""
        if key not in self:
            self[key] = default
        return self[key]


def _is_symbolic(key: Any) -> bool:
    return any(map(_is_symbolic, key)) if isinstance(key, tuple) else isinstance(key, (SymInt, SymFloat))


def _cache(name: str, value: Any) -> SizeCache | None:
    """Returns the cache that replaces a dict; None for anything else."""
    is_plain = type(value) in (dict, collections.defaultdict) and not name.startswith("__")
    return SizeCache(value) if is_plain else None


@contextmanager
def symbolic_keys(module: nn.Module) -> Iterator[None]:
    """Makes dicts accept free sizes as keys.

    Args:
        module: A copy of the detector. The dicts of its modules stay replaced, those of its packages' Python modules
            and classes are put back at the end of the block, without the entries that the block added.
    """
    for part in module.modules():
        for name, value in vars(part).items():
            cache = _cache(name, value)
            if cache is not None and not name.startswith("_forward") and name not in vars(nn.Module()):
                vars(part)[name] = cache
    with separate_caches(module):
        yield


def separate_caches(module: nn.Module) -> AbstractContextManager[None]:
    """Within it, the dicts of a detector's Python modules and classes are copies that accept free sizes as keys."""
    return replaced_names(module, _cache)
