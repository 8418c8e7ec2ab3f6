"""Makes ONNX models propagate NaN and infinities that arise inside them as torch does.

ONNX Runtime's CPU kernels lose NaN in maxima and order it otherwise; where a padded window extends beyond the image,
their maximum of minus infinities is finite, and so is infinity behind a lower bound alone. Only operators that follow
one that can make NaN or infinity from finite numbers, or a constant that contains infinities, are changed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

_MAKERS = {"Div", "Reciprocal", "Sqrt", "Pow", "Log", "Exp", "Acos", "Asin", "Acosh", "Atanh", "Tan", "Sinh", "Cosh"}
"""Operators that make NaN or infinity from some finite numbers."""

_SIZES = {"Shape", "Size"}


def keep_nan(model: Any) -> int:
    """Changes a model so that its operators propagate NaN and infinities.

    Args:
        model: A ``ModelProto`` of ONNX's opset 17. It is changed in place.

    Returns:
        The number of changed operators.
    """
    from onnx import TensorProto, shape_inference

    chosen = _following(model.graph)
    if not chosen:
        return 0
    known = shape_inference.infer_shapes(model).graph
    floats = {
        value.name
        for value in (*known.input, *known.value_info, *known.output)
        if value.type.tensor_type.elem_type == TensorProto.FLOAT
    }
    nodes = list(model.graph.node)
    del model.graph.node[:]
    changed = 0
    for index, node in enumerate(nodes):
        if index in chosen and node.input[0] in floats:
            _Change(model.graph, f"keep_nan_{index}").apply(node)
            changed += 1
        else:
            model.graph.node.append(node)
    return changed


def _following(graph: Any) -> set[int]:
    """Returns the indices of the operators to change, judged by the operators before them."""
    special = {tensor.name for tensor in graph.initializer if _holds_infinity(tensor)}
    found = set()
    for index, node in enumerate(graph.node):
        follows = any(name in special for name in node.input)
        if follows and node.op_type in _CHANGES:
            found.add(index)
        constants = [each.t for each in node.attribute if node.op_type == "Constant" and each.name == "value"]
        if node.op_type in _MAKERS or any(map(_holds_infinity, constants)) or (follows and node.op_type not in _SIZES):
            special.update(node.output)
    return found


def _holds_infinity(tensor: Any) -> bool:
    from onnx import TensorProto, numpy_helper

    return tensor.data_type == TensorProto.FLOAT and bool(np.isinf(numpy_helper.to_array(tensor)).any())


class _Change:
    """Adds nodes to a graph that correct one node's result."""

    def __init__(self, graph: Any, prefix: str) -> None:
        self._graph = graph
        self._prefix = prefix
        self._names: Iterator[str] = (f"{prefix}_{i}" for i in range(100))

    def apply(self, node: Any) -> None:
        """Adds the node, corrected; its output keeps its name."""
        _CHANGES[node.op_type](self, node)

    def constant(self, value: float) -> str:
        from onnx import numpy_helper

        name = next(self._names)
        self._graph.initializer.append(numpy_helper.from_array(np.array(value, np.float32), name))
        return name

    def add(self, kind: str, *inputs: str, output: str = "", **attributes: Any) -> str:
        """Adds a node and returns the name of its output."""
        from onnx import helper

        output = output or next(self._names)
        self._graph.node.append(helper.make_node(kind, inputs, [output], **attributes))
        return output

    def as_is(self, node: Any, first: str | None = None, output: str | None = None) -> str:
        """Adds a copy of a node, of another first input and with another first output. Returns the latter's name."""
        copied = type(node)()
        copied.CopyFrom(node)
        if first is not None:
            copied.input[0] = first
            del copied.output[1:]
        copied.output[0] = output or next(self._names)
        copied.name = f"{self._prefix}_{copied.output[0]}"
        self._graph.node.append(copied)
        return str(copied.output[0])

    def is_nan(self, value: str) -> str:
        """Returns a mask. It avoids IsNaN, which marks models that test for NaN themselves."""
        return self.add("Not", self.add("Equal", value, value))

    def as_number(self, mask: str) -> str:
        from onnx import TensorProto

        return self.add("Cast", mask, to=TensorProto.FLOAT)

    def is_positive(self, value: str) -> str:
        return self.add("Greater", value, self.constant(0.0))


def _reduced(change: _Change, node: Any) -> None:
    """Makes a maximum or minimum of values with NaN among them NaN."""
    numbers = change.as_number(change.is_nan(node.input[0]))
    if node.op_type.startswith("Reduce"):
        options = {each.name: each for each in node.attribute}
        given = {name: _value(options[name]) for name in ("axes", "keepdims") if name in options}
        found = change.add("ReduceMax", numbers, **given)
    else:
        found = change.as_is(node, first=numbers)
    value = change.as_is(node)
    if node.op_type == "MaxPool":
        lowest = change.add("Equal", value, change.constant(float(np.finfo(np.float32).min)))
        value = change.add("Where", lowest, change.constant(-np.inf), value)
    change.add("Where", change.is_positive(found), change.constant(np.nan), value, output=node.output[0])


def _indexed(change: _Change, node: Any) -> None:
    """Makes the index of a maximum or minimum that of the first NaN, if there is one."""
    options = {each.name: _value(each) for each in node.attribute}
    is_nan = change.is_nan(node.input[0])
    numbers = change.as_number(is_nan)
    any_is_nan = change.is_positive(change.add("ReduceMax", numbers, axes=[options.get("axis", 0)], keepdims=1))
    first = numbers if node.op_type == "ArgMax" else change.as_number(change.add("Not", is_nan))
    change.as_is(node, first=change.add("Where", any_is_nan, first, node.input[0]), output=node.output[0])


def _sign(change: _Change, node: Any) -> None:
    """Makes the sign of NaN 0."""
    value = change.as_is(node)
    change.add("Where", change.is_nan(node.input[0]), change.constant(0.0), value, output=node.output[0])


def _clip(change: _Change, node: Any) -> None:
    """Keeps infinity on the side that has no bound."""
    value = change.as_is(node)
    for place, infinity in ((1, -np.inf), (2, np.inf)):
        if len(node.input) <= place or not node.input[place]:
            bound = change.constant(infinity)
            value = change.add("Where", change.add("Equal", node.input[0], bound), bound, value)
    change.add("Identity", value, output=node.output[0])


def _value(attribute: Any) -> Any:
    from onnx import helper

    return helper.get_attribute_value(attribute)


_CHANGES: dict[str, Callable[[_Change, Any], None]] = {
    **dict.fromkeys(("MaxPool", "GlobalMaxPool", "ReduceMax", "ReduceMin"), _reduced),
    **dict.fromkeys(("ArgMax", "ArgMin"), _indexed),
    "Sign": _sign,
    "Clip": _clip,
}
"""What changes an operator of each kind."""
