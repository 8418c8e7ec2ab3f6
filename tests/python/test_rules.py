"""Checks rules on size: a function fits on a screen and takes few parameters."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator
from pathlib import Path

import pytest

import hybrid_rt
from helpers.paths import ROOT

MAX_LINES = 60
MAX_PARAMETERS = 8

DIRECTORIES = ("hybrid_rt", "tools", "tests", "models", "examples")

PUBLIC = {
    (Path(*function.__module__.split(".")).with_suffix(".py"), name)
    for name in hybrid_rt.__all__
    if inspect.isfunction(function := getattr(hybrid_rt, name))
}
"""Public functions with a stable signature: they may take more parameters, and document each of them."""

Function = ast.FunctionDef | ast.AsyncFunctionDef


def functions(path: Path) -> Iterator[Function]:
    return (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, Function))


def parameters(function: Function) -> int:
    taken = function.args.posonlyargs + function.args.args + function.args.kwonlyargs
    return len([argument for argument in taken if argument.arg not in ("self", "cls")])


def lines(function: Function, *, body_only: bool = False) -> int:
    """Returns the number of lines from ``def`` to the end, or of the body without the docstring."""
    first = function.lineno
    if body_only:
        has_docstring = ast.get_docstring(function) is not None
        first = (
            function.body[has_docstring].lineno if len(function.body) > has_docstring else function.body[0].end_lineno
        )
    return (function.end_lineno or first) - first + 1


def test_the_public_functions_are_found() -> None:
    assert {"convert", "load", "compile_segment"} <= {name for _, name in PUBLIC}


@pytest.mark.slow
@pytest.mark.parametrize("directory", DIRECTORIES)
def test_functions_are_short_and_take_few_parameters(directory: str) -> None:
    wrong = []
    for path in sorted((ROOT / directory).rglob("*.py")):
        for function in functions(path):
            is_public = (path.relative_to(ROOT), function.name) in PUBLIC
            length = lines(function, body_only=is_public)
            if length > MAX_LINES or (parameters(function) > MAX_PARAMETERS and not is_public):
                place = f"{path.relative_to(ROOT)}:{function.lineno}"
                wrong.append(f"{place} {function.name}: {length} lines, {parameters(function)} parameters")
    assert wrong == []


def test_the_rule_counts_lines_and_parameters() -> None:
    text = 'def f(self, a, /, b, *, c):\n    """Does.\n\n    More.\n    """\n    x = 1\n    return x\n'
    [function] = ast.parse(text).body
    assert isinstance(function, ast.FunctionDef)
    assert (parameters(function), lines(function), lines(function, body_only=True)) == (3, 7, 2)
