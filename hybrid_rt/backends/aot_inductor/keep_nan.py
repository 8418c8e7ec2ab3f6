"""Makes compiled modules propagate NaN that arises inside them, on CPUs.

Inductor fuses activations into oneDNN's convolutions and matrix products, whose activations lose NaN at some sizes.
Only activations that follow an operator that can make NaN or infinity from finite numbers are kept apart; usual
networks have none. NaN in an input is found when the engine runs, see :func:`handles_nan`.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

HANDLES_NAN = "handles_nan"
"""Name of the blob that marks a module which tests for NaN itself. The run half leaves its outputs as they are."""

_MAKERS = {"reciprocal", "rsqrt", "sqrt", "log", "log2", "log10", "log1p", "exp", "exp2", "expm1", "pow"}
_MAKERS |= {"acos", "asin", "acosh", "atanh", "tan", "sinh", "cosh", "fmod", "remainder"}
"""Operators that make NaN or infinity from some finite numbers, besides div."""

_ACTIVATIONS = {"relu", "relu_", "relu6", "relu6_", "clamp", "clamp_", "clamp_min", "clamp_min_", "clamp_max"}
_ACTIVATIONS |= {"hardtanh", "hardtanh_", "hardsigmoid", "hardsigmoid_", "hardswish", "hardswish_", "leaky_relu"}
_ACTIVATIONS |= {"leaky_relu_", "gelu", "silu", "silu_"}

_TESTS = {"isnan", "isfinite", "nan_to_num", "nan_to_num_"}

_NOT_NEGATIVE = {"abs", "square", "relu", "sigmoid", "softmax", "exp", "norm", "linalg_vector_norm", "var", "sqrt"}

_PASS_SIGNS = {"expand", "expand_as", "view", "reshape", "unsqueeze", "mean", "sum", "to", "contiguous", "clone"}
_PASS_SIGNS |= {"detach", "detach_", "lift_fresh_copy"}

_DEPTH = 8
"""Maximum number of operators to follow back to find the sign of a number."""


def handles_nan(module: GraphModule) -> bool:
    """Returns true if a module tests for NaN itself, so that its results for NaN are intended."""
    return any(_name(node) in _TESTS for node in module.graph.nodes)


def keep_nan(module: GraphModule) -> int:
    """Changes a module so that its activations propagate NaN.

    Args:
        module: The exported module of ATen's operators. It is changed in place.

    Returns:
        The number of changed activations.
    """
    after: set[Node] = set()
    changed = 0
    for node in list(module.graph.nodes):
        name = _name(node)
        follows = any(source in after for source in node.all_input_nodes)
        if follows or _makes(module, node, name):
            after.add(node)
        if not follows or name not in _ACTIVATIONS:
            continue
        with module.graph.inserting_before(node):
            mask = module.graph.call_function(torch.ops.aten.isnan.default, (node.args[0],))
        with module.graph.inserting_after(node):
            kept = module.graph.call_function(torch.ops.aten.masked_fill.Scalar, (node, mask, math.nan))
        node.replace_all_uses_with(kept, delete_user_cb=lambda user, kept=kept: user is not kept)
        after.add(kept)
        changed += 1
    if changed:
        module.recompile()
    return changed


def _name(node: Node) -> str:
    """Returns the name of an ATen operator without its overload; empty for any other node."""
    packet = getattr(node.target, "overloadpacket", None) if node.op == "call_function" else None
    return packet.__name__ if packet is not None else ""


def _makes(module: GraphModule, node: Node, name: str) -> bool:
    if name in ("div", "div_"):
        return not (_is_constant_without_0(module, node.args[1]) or _is_positive(module, node.args[1]))
    if name in ("sqrt", "log"):
        return not (_is_positive(module, node.args[0]) or (name == "sqrt" and _is_not_negative(module, node.args[0])))
    if name == "rsqrt":
        return not _is_positive(module, node.args[0])
    if name == "pow" and isinstance(node.args[1], int):
        return node.args[1] < 0
    return name in _MAKERS


def _is_constant_without_0(module: GraphModule, value: Any) -> bool:
    if isinstance(value, Node):
        return value.op == "get_attr" and bool((_constant(module, value) != 0).all())
    return bool(value != 0)


def _is_positive(module: GraphModule, value: Any, depth: int = _DEPTH) -> bool:
    """Returns true if a value is certainly greater than 0, or NaN."""
    if not isinstance(value, Node):
        return isinstance(value, (int, float)) and value > 0
    if value.op == "get_attr":
        return bool((_constant(module, value) > 0).all())
    name, args = _name(value), value.args
    if name.startswith("sym_") or (value.op == "call_function" and not name):
        return True  # a size, or Python's arithmetic on sizes
    if depth == 0 or not args:
        return False
    if name in ("clamp", "clamp_min"):
        least = args[1] if len(args) > 1 else value.kwargs.get("min")
        return isinstance(least, (int, float)) and least > 0
    if name == "add":
        pairs = ((args[0], args[1]), (args[1], args[0]))
        return any(_is_positive(module, a, depth - 1) and _is_not_negative(module, b, depth - 1) for a, b in pairs)
    return name in (*_PASS_SIGNS, "sqrt") and _is_positive(module, args[0], depth - 1)


def _is_not_negative(module: GraphModule, value: Any, depth: int = _DEPTH) -> bool:
    """Returns true if a value is certainly at least 0, or NaN."""
    if not isinstance(value, Node):
        return isinstance(value, (int, float)) and value >= 0
    if value.op == "get_attr":
        return bool((_constant(module, value) >= 0).all())
    name, args = _name(value), value.args
    if name in _NOT_NEGATIVE or (name == "pow" and isinstance(args[1], int) and args[1] % 2 == 0):
        return True
    if name == "mul" and args[0] is args[1]:
        return True
    return depth > 0 and name in _PASS_SIGNS and _is_not_negative(module, args[0], depth - 1)


def _constant(module: GraphModule, node: Node) -> Tensor:
    found: Any = module
    for part in str(node.target).split("."):
        found = getattr(found, part)
    return found.detach() if isinstance(found, Tensor) else torch.zeros(1)
