"""Finds the files of a checkout that name a backend, which adding another backend would change.

A literal counts if it is a whole name, a list of names, optionally with precisions ("openvino:bf16"), or the name of a
vendor's package or module, because such a literal affects behaviour. Prose that names an engine as an example does not
count.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Any

from helpers.pyproject import read_pyproject

DIRECTORIES = ("hybrid_rt", "cpp", "tools", "examples", "models")
PYPROJECT_TABLES = {"build-system.requires", "project.dependencies", "project.optional-dependencies"}
"""Tables in which a package needs a line: an extra, or a build requirement of the native part."""


def places(root: Path, names: Collection[str]) -> dict[str, set[str]]:
    """Returns the files outside the backends' own directories that name one of ``names``, with those names."""
    found: dict[str, set[str]] = {}
    for path in sorted(path for directory in DIRECTORIES for path in (root / directory).rglob("*")):
        inside = path.relative_to(root)
        if not path.is_file() or _is_a_backends_own(inside):
            continue
        texts: Iterable[str]
        if path.suffix == ".py":
            texts = _python_literals(path.read_text())
        elif path.suffix in {".cpp", ".h", ".cu"}:
            texts = re.findall(r'"([^"\n]*)"', re.sub(r"//.*", "", path.read_text()))
        elif path.suffix in {".txt", ".cmake", ".sh", ""} and not _is_binary(path):
            texts = re.split(r"[\s;'\"=()]+", re.sub(r"(?m)(^|\s)#.*", "", path.read_text()))
        else:
            continue
        named = {name for text in texts for name in _names_in(text, names)}
        if named:
            found[inside.as_posix()] = named
    named = {name for text in _toml_texts(read_pyproject(root)) for name in _names_in(text, names)}
    return {**found, "pyproject.toml": named} if named else found


def _is_a_backends_own(path: Path) -> bool:
    """Returns true for a file in a backend's own directory or module."""
    for parent in ("hybrid_rt/backends", "cpp/backends"):
        if path.is_relative_to(parent):
            own = path.relative_to(parent).parts[0].removesuffix(".py")
            return own not in {"__init__", "base", "cache", "registry", "selection", "whole_graph", "CMakeLists.txt"}
    return False


def _names_in(text: str, names: Collection[str]) -> set[str]:
    words = re.split(r"[\s,]+", text.strip())
    # "NAME", "NAME:bf16", "NAME>=1.2", "NAME[extra]"
    parts = [re.fullmatch(r"([\w.-]+)(?:[:<>=!~\[].*)?", word) for word in words]
    if not all(parts) or not all(part[1] in names for part in parts if part):
        return set()
    return {part[1] for part in parts if part}


def _python_literals(source: str) -> Iterator[str]:
    tree = ast.parse(source)
    docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
            yield node.value


def _toml_texts(value: Any, table: str = "") -> Iterator[str]:
    if table in PYPROJECT_TABLES:
        return
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _toml_texts(inner, f"{table}.{key}" if table else key)
    elif isinstance(value, list):
        for inner in value:
            yield from _toml_texts(inner, table)
    elif isinstance(value, str):
        yield value.removesuffix(".*")


def _is_binary(path: Path) -> bool:
    return b"\0" in path.read_bytes()[:4096]
