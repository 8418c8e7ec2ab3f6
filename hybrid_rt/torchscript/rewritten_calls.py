"""Calls that TorchScript lacks, written as equivalents that it has.

These are ``super().forward(x)``, the clocks of Python's module ``time``, ``x.new(x.shape)``, ``x.new_tensor(values)``,
``nonzero(as_tuple=...)`` and the unpacking of a transposed tensor.
"""

from __future__ import annotations

import ast
import inspect
import time
from collections.abc import Iterator
from types import FunctionType
from typing import Any

from torch import nn

_CLOCKS = (time.time, time.perf_counter, time.monotonic)

_SECONDS = "torch.ops.prim.TimePoint() * 1e-9"
"""A clock in TorchScript. Its zero is arbitrary, so that only differences are meaningful."""


def rewrite_calls(definition: ast.FunctionDef, function: Any) -> None:
    """Rewrites the calls in a parsed function.

    Args:
        definition: The function, parsed. It is changed.
        function: The function.
    """
    _Rewriter(definition, inspect.unwrap(function)).visit(definition)


def inherited_methods(kind: type[nn.Module]) -> dict[str, FunctionType]:
    """Returns the methods of base classes that a class's methods may call by ``super()``, by the names of the calls."""
    found: dict[str, FunctionType] = {}
    order = [each for each in kind.__mro__ if each not in nn.Module.__mro__]
    for i, owner in enumerate(order):
        for function in map(inspect.unwrap, filter(callable, vars(owner).values())):
            code = getattr(function, "__code__", None)
            for name in code.co_names if code is not None and "super" in code.co_names else ():
                method = next((vars(base)[name] for base in order[i + 1 :] if name in vars(base)), None)
                if isinstance(method, FunctionType) and not name.startswith("__"):
                    found[_name_after(owner, name)] = method
    return found


def _name_after(owner: type, name: str) -> str:
    return f"_{name}_after_{owner.__name__}"


class _Rewriter(ast.NodeTransformer):
    def __init__(self, definition: ast.FunctionDef, function: Any) -> None:
        variables = inspect.getclosurevars(function)
        self._names: dict[str, Any] = {**variables.builtins, **function.__globals__, **variables.nonlocals}
        self._locals = frozenset(function.__code__.co_varnames)
        self._self = definition.args.args[0].arg if definition.args.args else ""

    def visit_Call(self, node: ast.Call) -> ast.AST:
        self.generic_visit(node)
        match node.func:
            case ast.Attribute(value=ast.Call(func=ast.Name(id="super"), args=given), attr=name):
                owner = self._object(given[0]) if given else self._names.get("__class__")
                if isinstance(owner, type) and self._self:
                    itself = ast.copy_location(ast.Name(self._self, ast.Load()), node)
                    node.func = ast.copy_location(ast.Attribute(itself, _name_after(owner, name), ast.Load()), node)
            case ast.Attribute(attr="new") if len(node.args) == 1 and not node.keywords and _is_shape(node.args[0]):
                node.func.attr = "new_empty"
            case ast.Attribute(value=ast.Name(id=like), attr="new_tensor") if not node.keywords:
                node.func = _located("torch.tensor", node)
                node.keywords = [_keyword(name, f"{like}.{name}", node) for name in ("dtype", "device")]
            case ast.Attribute(attr="nonzero"):
                _choose_nonzero(node, node.func)
            case _ if not node.args and self._object(node.func) in _CLOCKS:
                return _located(_SECONDS, node)
        return node

    def visit_Assign(self, node: ast.Assign) -> ast.AST:
        self.generic_visit(node)
        if len(node.targets) == 1 and isinstance(node.targets[0], (ast.Tuple, ast.List)) and _is_transposed(node.value):
            unbind = ast.copy_location(ast.Attribute(node.value, "unbind", ast.Load()), node.value)
            node.value = ast.copy_location(ast.Call(unbind, [], []), node.value)
        return node

    def _object(self, node: ast.expr) -> Any:
        """Returns the object that a dotted name stands for; None if it is not known."""
        match node:
            case ast.Name(id=name) if name not in self._locals:
                return self._names.get(name)
            case ast.Attribute(value=value, attr=name):
                return getattr(self._object(value), name, None)
        return None


def _choose_nonzero(node: ast.Call, function: ast.Attribute) -> None:
    """Removes ``as_tuple`` from a call of nonzero. The operator that returns one tensor per axis has another name."""
    match node.keywords:
        case [ast.keyword(arg="as_tuple", value=ast.Constant(value=bool(as_tuple)))]:
            node.keywords = []
            if not as_tuple:
                return
            function.attr = "nonzero_numpy"
            if node.args:  # torch.nonzero(x)
                function.value = _located("torch.ops.aten", node)


def _is_shape(value: ast.expr) -> bool:
    match value:
        case ast.Attribute(attr="shape") | ast.Call(func=ast.Attribute(attr="size"), args=[]):
            return True
    return False


def _is_transposed(value: ast.expr) -> bool:
    match value:
        case ast.Attribute(attr="T" | "mT") | ast.Call(func=ast.Attribute(attr="t"), args=[]):
            return True
    return False


def _located(source: str, place: ast.expr) -> ast.expr:
    parsed = ast.parse(source, mode="eval").body
    for node in _nodes(parsed):
        ast.copy_location(node, place)
    return parsed


def _keyword(name: str, source: str, place: ast.expr) -> ast.keyword:
    return ast.copy_location(ast.keyword(name, _located(source, place)), place)


def _nodes(tree: ast.expr) -> Iterator[ast.AST]:
    return (node for node in ast.walk(tree) if hasattr(node, "lineno"))
