"""Types that a detector's code leaves out, for TorchScript, which infers less than Python.

TorchScript takes an argument without annotation for a Tensor and ``[]`` for a list of tensors, and refuses the number 2
for an argument of type float. The types that arguments and lists had in a run replace the first two.
"""

from __future__ import annotations

import ast
import builtins
import functools
import inspect
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import CodeType, FrameType
from typing import Any, Optional

import torch
from torch import Tensor

from ..common.error_text import LIBRARIES

Place = tuple[str, int]
"""File and first line of a function."""

_PLAIN = (bool, int, float, str)

_WORD = re.compile(r"\w+")

_TAKING_SIZES = frozenset(
    {
        "view",
        "reshape",
        "expand",
        "repeat",
        "permute",
        "zeros",
        "ones",
        "empty",
        "rand",
        "randn",
        "new_zeros",
        "new_ones",
        "new_empty",
    }
)
"""Methods and functions that take sizes as separate arguments or as a list."""

_MOST = 64
"""Maximum number of entries of a container that are checked."""

_UNKNOWN = ""

_NONE = "None"

_TENSOR = "Tensor"


@dataclass
class _Function:
    """Types of a function's arguments and variables by name; a name without a single type has an empty one."""

    arguments: dict[str, str] = field(default_factory=dict)
    variables: dict[str, str] = field(default_factory=dict)


class ObservedTypes:
    """Types of the arguments and variables of the functions that ran, in the syntax of TorchScript's annotations."""

    def __init__(self) -> None:
        """Knows no type."""
        self._functions: dict[Place, _Function] = {}

    def arguments(self, place: Place) -> Mapping[str, str]:
        """Returns the known types of a function's arguments that are not tensors."""
        found = self._functions.get(place, _Function()).arguments
        return {name: kind for name, kind in found.items() if kind not in (_UNKNOWN, _NONE, _TENSOR)}

    def variables(self, place: Place) -> Mapping[str, str]:
        """Returns the known types of a function's lists and dicts."""
        found = self._functions.get(place, _Function()).variables
        return {name: kind for name, kind in found.items() if kind not in (_UNKNOWN, _NONE)}

    @contextmanager
    def observing(self) -> Iterator[None]:
        """Records the types of the functions that run in the block, in this thread; torch's own excluded."""
        known: dict[CodeType, bool] = {}

        def record(frame: FrameType, event: str, _: Any) -> None:
            code = frame.f_code
            if event not in ("call", "return") or not known.setdefault(code, _is_users(code)):
                return
            function = self._functions.setdefault((code.co_filename, code.co_firstlineno), _Function())
            values = frame.f_locals
            if event == "call":
                for name in code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]:
                    _note(function.arguments, name, _type_of(values.get(name)))
                return
            for name, value in values.items():
                if isinstance(value, (list, dict, torch.Size)) and value:
                    _note(function.variables, name, _type_of(value))

        with _without_profiler():
            sys.setprofile(record)
            try:
                yield
            finally:
                sys.setprofile(None)

    def complete(self, definition: ast.FunctionDef, function: Any, place: Place) -> None:
        """Annotates arguments and empty containers of a parsed function, and writes numbers as floats where needed.

        Args:
            definition: The function, parsed. It is changed.
            function: The function.
            place: Its file and first line.
        """
        arguments, variables = self.arguments(place), self.variables(place)
        for argument in (*definition.args.args, *definition.args.kwonlyargs):
            if argument.annotation is None and argument.arg in arguments:
                argument.annotation = located(arguments[argument.arg], argument)
        if variables:
            _Containers(variables, definition).visit(definition)
        _Floats(function).visit(definition)
        _Sizes(variables).visit(definition)


@contextmanager
def _without_profiler() -> Iterator[None]:
    """Pauses the caller's profiler in the block, because a thread has one."""
    profiler: Any = sys.getprofile()
    is_function = profiler is None or callable(profiler)
    if not is_function:  # cProfile's
        profiler.disable()
    try:
        yield
    finally:
        if is_function:
            sys.setprofile(profiler)
        else:
            profiler.enable()


class _Containers(ast.NodeTransformer):
    """Annotates the first assignment of an empty list or dict to a variable."""

    def __init__(self, types: Mapping[str, str], definition: ast.FunctionDef) -> None:
        self._types = types
        self._known = {argument.arg for argument in (*definition.args.args, *definition.args.kwonlyargs)}

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST:
        if isinstance(node.target, ast.Name):
            self._known.add(node.target.id)
        return node

    def visit_Assign(self, node: ast.Assign) -> ast.AST | list[ast.AST]:
        target = node.targets[0]
        if len(node.targets) > 1:
            return node
        if isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple):
            pairs = list(zip(target.elts, node.value.elts, strict=False))
            if len(target.elts) == len(node.value.elts) and all(_is_empty(value) for _, value in pairs):
                return [self._assigned(each, value, node) for each, value in pairs]
        return self._assigned(target, node.value, node)

    def _assigned(self, target: ast.expr, value: ast.expr, node: ast.Assign) -> ast.AST:
        if isinstance(target, ast.Name):
            kind = self._types.get(target.id) if target.id not in self._known and _is_empty(value) else None
            self._known.add(target.id)
            if kind is not None:
                empty: ast.expr = ast.Dict([], []) if kind.startswith("Dict") else ast.List([], ast.Load())
                return ast.copy_location(
                    ast.AnnAssign(target, located(kind, target), ast.copy_location(empty, value), simple=1), node
                )
        return node if value is node.value else ast.copy_location(ast.Assign([target], value), node)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        return self.generic_visit(node)


class _Floats(ast.NodeTransformer):
    """Writes whole numbers as floats where the called function's signature says so."""

    def __init__(self, function: Any) -> None:
        function = inspect.unwrap(function)
        self._locals = frozenset(function.__code__.co_varnames)
        self._names = {**vars(builtins), **function.__globals__, **inspect.getclosurevars(function).nonlocals}

    def visit_Call(self, node: ast.Call) -> ast.AST:
        self.generic_visit(node)
        try:
            parameters = inspect.signature(self._called(node.func)).parameters
        except (KeyError, AttributeError, TypeError, ValueError):  # a method, a local function, a builtin
            return node
        for i, (argument, parameter) in enumerate(zip(node.args, parameters.values(), strict=False)):
            node.args[i] = _as_float(argument) if _is_float(parameter) else argument
        for keyword in node.keywords:
            if keyword.arg is not None and keyword.arg in parameters and _is_float(parameters[keyword.arg]):
                keyword.value = _as_float(keyword.value)
        return node

    def _called(self, node: ast.expr) -> Any:
        """Returns the function that a dotted name stands for.

        Raises:
            KeyError: It is not a name, or one of a local variable.
        """
        match node:
            case ast.Name(id=name) if name not in self._locals:
                return self._names[name]
            case ast.Attribute(value=value, attr=name):
                return getattr(self._called(value), name)
        raise KeyError


class _Sizes(ast.NodeTransformer):
    """Joins sizes in lists: ``x.view([n] + x.shape[2:])`` for ``x.view(n, *x.shape[2:])``.

    TorchScript unpacks only what has a length that it knows.
    """

    def __init__(self, types: Mapping[str, str]) -> None:
        self._sizes = {name for name, kind in types.items() if kind == "List[int]"}

    def visit_Call(self, node: ast.Call) -> ast.AST:
        self.generic_visit(node)
        if isinstance(node.func, ast.Attribute) and node.func.attr in _TAKING_SIZES:
            joined = self._joined(node.args, node)
            node.args = [joined] if joined is not None else node.args
        return node

    def visit_Tuple(self, node: ast.Tuple) -> ast.AST:
        self.generic_visit(node)
        return self._joined(node.elts, node) or node

    def visit_List(self, node: ast.List) -> ast.AST:
        self.generic_visit(node)
        return self._joined(node.elts, node) or node

    def _joined(self, values: Sequence[ast.expr], place: ast.expr) -> ast.expr | None:
        """Returns the sum of the values and unpacked sizes, or None if nothing of unknown length is unpacked."""
        if not any(isinstance(value, ast.Starred) and self._are_sizes(value.value) for value in values):
            return None
        parts = [
            value.value if isinstance(value, ast.Starred) else ast.copy_location(ast.List([value], ast.Load()), value)
            for value in values
        ]
        return functools.reduce(lambda a, b: ast.copy_location(ast.BinOp(a, ast.Add(), b), place), parts)

    def _are_sizes(self, node: ast.expr) -> bool:
        match node:
            case ast.Name(id=name):
                return name in self._sizes
            case ast.Attribute(attr="shape") | ast.Call(func=ast.Attribute(attr="size"), args=[]):
                return True
            case ast.Subscript(value=value, slice=ast.Slice()):
                return self._are_sizes(value)
        return False


def _is_float(parameter: inspect.Parameter) -> bool:
    kind = parameter.annotation
    if kind is parameter.empty:
        return type(parameter.default) is float
    words = {*_WORD.findall(kind.__name__ if kind in _PLAIN else str(kind))}
    return "float" in words and not words & {"int", "str", "Tensor"}


def _as_float(value: ast.expr) -> ast.expr:
    """Returns a whole number, or a list of them, as floats; any other expression unchanged."""
    match value:
        case ast.Constant(value=int(number)) if not isinstance(number, bool):
            return ast.copy_location(ast.Constant(float(number)), value)
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return ast.copy_location(ast.UnaryOp(ast.USub(), _as_float(operand)), value)
        case ast.Tuple(elts=parts) | ast.List(elts=parts) if parts:
            return ast.copy_location(ast.List([*map(_as_float, parts)], ast.Load()), value)
    return value


def located(annotation: str, place: ast.expr | ast.arg) -> ast.expr:
    """Returns a parsed annotation, every part of which is at the place of another node."""
    parsed = ast.parse(annotation, mode="eval").body
    for node in ast.walk(parsed):
        if hasattr(node, "lineno"):
            ast.copy_location(node, place)
    return parsed


def _is_empty(value: ast.expr) -> bool:
    match value:
        case ast.List(elts=[]) | ast.Dict(keys=[]):
            return True
        case ast.Call(
            func=ast.Name(id="list" | "dict" | "OrderedDict") | ast.Attribute(attr="OrderedDict"), args=[], keywords=[]
        ):
            return True
    return False


def _is_users(code: CodeType) -> bool:
    return not code.co_name.startswith("<") and not code.co_filename.startswith(LIBRARIES)


def _note(types: dict[str, str], name: str, kind: str) -> None:
    types[name] = _joined(types[name], kind) if name in types else kind


def _joined(one: str, other: str) -> str:
    """Returns the type of values of two types, or an empty string if TorchScript has none."""
    if one == other or _UNKNOWN in (one, other):
        return one if one == other else _UNKNOWN
    if _NONE in (one, other):
        kind = other if one == _NONE else one
        return kind if kind.startswith("Optional[") else f"Optional[{kind}]"
    inner = [kind.removeprefix("Optional[").removesuffix("]") for kind in (one, other) if kind.startswith("Optional[")]
    bare = [kind for kind in (one, other) if not kind.startswith("Optional[")]
    return f"Optional[{inner[0]}]" if len(bare) == 1 and inner == bare else _UNKNOWN


def _type_of(value: Any) -> str:
    """Returns the annotation of a value's type, or an empty string if TorchScript has none or it is not known."""
    kind = type(value)
    if value is None:
        return _NONE
    if isinstance(value, Tensor):
        return _TENSOR
    if kind in _PLAIN:
        return kind.__name__
    if kind is torch.Size:
        return "List[int]"
    if kind is list:
        inner = _common(value)
        return f"List[{inner}]" if inner else _UNKNOWN
    if kind is tuple:
        parts = [_type_of(each) for each in value[:_MOST]]
        return f"Tuple[{', '.join(parts)}]" if parts and not {_UNKNOWN, _NONE} & {*parts} else _UNKNOWN
    if isinstance(value, dict):
        keys, values = _common(value), _common(value.values())
        return f"Dict[{keys}, {values}]" if keys in ("str", "int") and values else _UNKNOWN
    return _UNKNOWN


def _common(values: Any) -> str:
    """Returns the type that all values of a container have, or an empty string."""
    found: dict[str, str] = {}
    for _, value in zip(range(_MOST), values, strict=False):
        _note(found, "", _type_of(value))
    kind = found.get("", _UNKNOWN)
    return _UNKNOWN if kind == _NONE else kind


def type_of(value: Any) -> Any:
    """Returns the type of a list or dict as an annotation; None for anything else, or if it is not known."""
    kind = _type_of(value) if isinstance(value, (list, dict)) else _UNKNOWN
    names = {"List": list, "Dict": dict, "Optional": Optional, "Tuple": tuple, "Tensor": Tensor}
    return eval(kind, names) if kind else None
