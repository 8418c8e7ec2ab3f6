"""Renamed keys of dicts, for programs that still use the old ones."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any


class OldNames(dict[str, Any]):
    """A dict that also accepts former keys, with a DeprecationWarning; ``keys()`` does not list them."""

    def __init__(self, values: Mapping[str, Any], old: Mapping[str, tuple[str, Callable[[Any], Any]]]) -> None:
        """Wraps a dict.

        Args:
            values: the current content.
            old: by former key, the replacement (for the warning) and a function that gets the value from the dict.
        """
        super().__init__(values)
        self._old = old

    def __missing__(self, key: str) -> Any:
        """Returns the value of a former key."""
        if key not in self._old:
            raise KeyError(key)
        now, find = self._old[key]
        warnings.warn(f"The key '{key}' is deprecated, use {now}.", DeprecationWarning, stacklevel=2)
        return find(self)


def manifest(values: Mapping[str, Any]) -> OldNames:
    """Returns a manifest that still accepts ``segments``, each with its ``name``, as in format version 1."""
    return OldNames(values, {"segments": ("'engines'", _segments)})


def engine_choice(values: Mapping[str, Any]) -> OldNames:
    """Returns an entry of :func:`hybrid_rt.engines` that still accepts its former key ``segment``."""
    return OldNames(values, {"segment": ("'engine'", lambda choice: choice["engine"])})


def _segments(found: Mapping[str, Any]) -> list[OldNames]:
    return [OldNames(engine, {"name": ("the names of its 'members'", _name)}) for engine in found["engines"]]


def _name(engine: Mapping[str, Any]) -> str:
    return "+".join(member["name"] for member in engine["members"])
