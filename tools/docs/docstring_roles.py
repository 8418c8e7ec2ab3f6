"""Griffe extension that turns the Sphinx roles of docstrings, such as ``:func:`load` ``, into links of the site."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

import griffe

_ROLE = re.compile(r":(?:func|class|meth|mod|data|attr):`~?([\w.]+)`")
_PACKAGE = Path(__file__).resolve().parents[2] / "hybrid_rt"


def exported_names() -> set[str]:
    """Returns the names in ``hybrid_rt.__all__``, read from the source: the site needs no native library."""
    for node in ast.parse((_PACKAGE / "__init__.py").read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id == "__all__":
            return set(ast.literal_eval(node.value))
    raise LookupError("hybrid_rt/__init__.py has no __all__")


class DocstringRoles(griffe.Extension):
    """Replaces each role by a link if the reference has the name, else by code."""

    def __init__(self) -> None:
        """Reads the exported names once."""
        super().__init__()
        self._exported = exported_names()

    def on_object(self, *, obj: griffe.Object, **_kwargs: Any) -> None:
        """Rewrites the docstring of one object."""
        if obj.docstring:
            obj.docstring.value = _ROLE.sub(self._link, obj.docstring.value)

    def _link(self, role: re.Match[str]) -> str:
        name = role[1].removeprefix("hybrid_rt.").lstrip(".")
        if name.split(".")[0] in self._exported:
            return f"[`{name}`][hybrid_rt.{name}]"
        return f"`{name}`"
