"""Segments: the submodules of a detector that become engines."""

from __future__ import annotations

import copy
import difflib
from collections.abc import Mapping, Sequence

from torch import nn

from .errors import OptionError


def resolve(detector: nn.Module, segments: str | Sequence[str]) -> list[str]:
    """The dotted names of the segments, checked.

    Args:
        detector: the detector.
        segments: "auto" (the submodule ``backbone``), or names such as ["backbone", "rpn.head"].

    Raises:
        OptionError: no name, a name that does not exist (with the near ones), one inside another.
    """
    known = [name for name, _ in detector.named_modules(remove_duplicate=False) if name]
    if segments == "auto":
        if "backbone" not in known:
            raise OptionError.make(
                "convert",
                "segments='auto'",
                expected="a submodule called 'backbone'",
                got=f"a {type(detector).__name__} with {', '.join(name for name in known if '.' not in name)}",
                remedy="Name the segments: segments=[...].",
            )
        return ["backbone"]
    names = [segments] if isinstance(segments, str) else list(segments)
    if not names:
        raise OptionError.make("convert", "segments", expected="'auto' or at least one name", got="an empty list")
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=3)
            raise OptionError.make(
                "convert",
                "segments",
                expected=f"a submodule of {type(detector).__name__}",
                got=f"'{name}'",
                remedy=f"Near it: {', '.join(near)}." if near else "See detector.named_modules().",
            )
    for outer in names:
        for inner in names:
            if inner.startswith(f"{outer}.") or (inner == outer and names.count(inner) > 1):
                raise OptionError.make(
                    "convert",
                    "segments",
                    expected="each submodule once",
                    got=f"'{inner}' twice" if inner == outer else f"'{inner}' inside '{outer}'",
                    remedy="Leave one of them out.",
                )
    return names


def replace(detector: nn.Module, replacements: Mapping[str, nn.Module]) -> nn.Module:
    """A detector with other submodules at the named places; the given one is left as it is, weights are shared.

    A submodule that has several names is replaced under each: the detector may call it by any.
    """
    root = _shallow(detector)
    for name, replacement in replacements.items():
        replaced = detector.get_submodule(name)
        for alias, module in detector.named_modules(remove_duplicate=False):
            if module is replaced:
                _put(root, alias, replacement)
    return root


def _put(root: nn.Module, name: str, replacement: nn.Module) -> None:
    """Puts a module at a place in the tree; the modules on the way there become copies."""
    *path, last = name.split(".")
    parent = root
    for part in path:
        child = _shallow(parent.get_submodule(part))
        parent._modules[part] = child
        parent = child
    parent._modules[last] = replacement


def _shallow(module: nn.Module) -> nn.Module:
    duplicate = copy.copy(module)
    duplicate._modules = dict(module._modules)
    return duplicate
