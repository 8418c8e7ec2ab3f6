"""Makes OpenVINO's graphs propagate NaN and infinities that arise inside them.

OpenVINO's CPU kernels turn NaN into a number in ReLU, pooling and other operators. Only operators that follow one that
can make NaN or infinity from finite numbers are changed: a division by a number that may be 0, a logarithm, an
exponential function and others. Convolutions, sums and normalisations with an epsilon make neither unless a number
exceeds float32's range, so that usual networks do not change.

Its maxima start from the least finite number, so that the maximum of minus infinities is finite. Maxima and minima that
follow such an operator, or a constant that contains infinities such as a mask, are corrected.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

_MAKERS = {"Log", "Exp", "Acos", "Asin", "Acosh", "Atanh", "Tan", "Sinh", "Cosh", "Mod", "FloorMod"}
"""Operators that make NaN or infinity from some finite numbers, besides Divide, Sqrt and Power."""

_NOT_NEGATIVE = {"Abs", "Relu", "Sigmoid", "HardSigmoid", "Softmax", "Exp", "ReduceL1", "ReduceL2", "Sqrt", "SoftPlus"}

_LOSE_EACH = {"Relu", "Clamp", "HardSigmoid", "HSigmoid", "Exp", "Maximum", "Minimum"}
"""Operators that lose NaN element by element."""

_LOSE_SOME = {"ReduceMax", "ReduceMin", "Softmax", "LogSoftmax"}
"""Operators that lose NaN along axes."""

_COMPARE = {"Greater", "GreaterEqual", "Less", "LessEqual"}
"""Comparisons; OpenVINO's return true for NaN in some cases."""

_MAXIMA = {"MaxPool", "AdaptiveMaxPool", "ReduceMax"}

_DEPTH = 8
"""Maximum number of operators to follow back to find the sign of a number."""


def keep_nan(model: Any) -> int:
    """Changes a model so that its operators propagate NaN and infinities.

    Args:
        model: The OpenVINO model. It is changed in place.

    Returns:
        The number of changed operators.
    """
    values: set[str] = set()  # operators that depend on the inputs' values, not only on their sizes
    after: set[str] = set()
    infinite = {op.get_friendly_name() for op in model.get_ordered_ops() if _holds_infinity(op)}
    changed = 0
    for op in model.get_ordered_ops():
        name, kind = op.get_friendly_name(), op.get_type_name()
        sources = {op.input_value(i).get_node().get_friendly_name() for i in range(op.get_input_size())}
        if kind == "Parameter" or (kind != "ShapeOf" and sources & values):
            values.add(name)
        if kind != "ShapeOf" and sources & (infinite | after):
            infinite.add(name)
        if name not in values or not sources:
            continue
        follows = bool(sources & after) and _is_float(op.input_value(0))
        if _has_floats(op) and (follows or _Signs(values).makes(op)):
            after.add(name)
        restored = _with_infinity(op, kind, _Signs(values)) if name in infinite else None
        kept = _kept(op, kind) if follows else None
        for new in (restored, kept):
            if new is not None:
                values.add(new.get_friendly_name())
                infinite.add(new.get_friendly_name())
                changed += 1
        if kept is not None:
            after.add(kept.get_friendly_name())
    if changed:
        model.validate_nodes_and_infer_types()
    return changed


def _is_float(value: Any) -> bool:
    return bool(value.get_element_type().is_real())


def _holds_infinity(op: Any) -> bool:
    """Returns true for a constant that contains an infinity."""
    if op.get_type_name() != "Constant" or not _is_float(op.output(0)):
        return False
    numbers = op.get_data()
    return bool(numbers.dtype.kind == "f" and np.isinf(numbers).any())


def _has_floats(op: Any) -> bool:
    return any(_is_float(op.output(i)) for i in range(op.get_output_size()))


def _kept(op: Any, kind: str) -> Any:
    """Replaces an operator's result by torch's where its inputs are NaN. Returns the new operator, or None."""
    if kind in _LOSE_EACH:
        return _replace(op, _is_nan)
    if kind in _LOSE_SOME:
        return _replace(op, _has_nan_along_axes)
    if kind in ("MaxPool", "AdaptiveMaxPool"):
        return _replace(op, _has_nan_in_window)
    if kind == "TopK":
        return _with_index_of_nan(op)
    if kind in _COMPARE:
        return _replace(op, _is_nan, to=False)
    if kind == "Sign":
        return _replace(op, _is_nan, to=0.0)
    if kind == "Convert" and op.get_output_element_type(0).get_type_name() == "boolean":
        return _replace(op, _is_nan, to=True)
    return None


def _with_infinity(op: Any, kind: str, signs: _Signs) -> Any:
    """Replaces the number from which OpenVINO's maximum or minimum starts by infinity.

    Returns:
        The new operator; None if the operator is another one, or needs no change.
    """
    if kind not in (*_MAXIMA, "ReduceMin") or op.get_output_element_type(0).get_type_name() != "f32":
        return None
    if kind in _MAXIMA and signs.is_not_negative(op.input_value(0)):
        return None
    readers = [reader.get_node() for reader in op.output(0).get_target_inputs()]
    if any(
        reader.get_type_name() == "Subtract" and _same(reader.input_value(0), op.input_value(0)) for reader in readers
    ):
        return None  # logsumexp subtracts the maximum: infinity minus infinity would be NaN
    start = float(np.finfo(np.float32).min) * (1 if kind in _MAXIMA else -1)

    def at_start(op: Any, opset: Any) -> Any:
        return opset.equal(op.output(0), opset.constant(start, dtype="float32"))

    return _replace(op, at_start, to=start * float("inf"))


def _replace(op: Any, place: Callable[[Any, Any], Any], to: float = float("nan")) -> Any:
    from openvino import opset13 as opset

    output = op.output(0)
    readers = list(output.get_target_inputs())
    value = opset.constant(to, dtype=output.get_element_type().to_dtype())
    kept = opset.select(place(op, opset), value, output)
    for reader in readers:
        reader.replace_source_output(kept.output(0))
    return kept


def _with_index_of_nan(op: Any) -> Any:
    """Makes the index of a maximum or minimum that of the first NaN, if there is one.

    Returns:
        The operator's new source; None if it returns several indices, or values too.
    """
    from openvino import opset13 as opset

    count = _numbers(op.input_value(1))
    if count is None or count != 1 or op.output(0).get_target_inputs():
        return None
    source, given = op.input_value(0), op.get_attributes()
    numbers = _as_numbers(op, opset)
    axis = opset.constant([given["axis"]], dtype="int64")
    has_nan = opset.greater(opset.reduce_max(numbers, axis, True), opset.constant(0.0, dtype="float32"))
    first = numbers if given["mode"] == "max" else opset.subtract(opset.constant(1.0, dtype="float32"), numbers)
    chosen = opset.select(has_nan, opset.convert_like(first, source), source)
    op.input(0).replace_source_output(chosen.output(0))
    return chosen


def _is_nan(op: Any, opset: Any) -> Any:
    """Returns a mask of NaN in the inputs. It avoids IsNaN, which marks models that check for NaN themselves."""
    masks = [opset.not_equal(op.input_value(i), op.input_value(i)) for i in range(op.get_input_size())]
    return masks[0] if len(masks) == 1 else opset.logical_or(*masks)


def _as_numbers(op: Any, opset: Any) -> Any:
    source = op.input_value(0)
    return opset.convert(opset.not_equal(source, source), "f32")


def _has_nan_along_axes(op: Any, opset: Any) -> Any:
    numbers = _as_numbers(op, opset)
    if op.get_type_name().startswith("Reduce"):
        found = opset.reduce_max(numbers, op.input_value(1), bool(op.get_attributes()["keep_dims"]))
    else:  # a softmax, which positive infinity makes NaN too
        dtype = op.get_input_element_type(0).to_dtype()
        infinite = opset.equal(op.input_value(0), opset.constant(float("inf"), dtype=dtype))
        numbers = opset.maximum(numbers, opset.convert(infinite, "f32"))
        found = opset.reduce_max(numbers, opset.constant([op.get_attributes()["axis"]], dtype="int64"), True)
    return opset.greater(found, opset.constant(0.0, dtype="float32"))


def _has_nan_in_window(op: Any, opset: Any) -> Any:
    numbers = _as_numbers(op, opset)
    if op.get_type_name() == "MaxPool":
        given = op.get_attributes()
        dilations = given.get("dilations", [1] * len(given["kernel"]))
        kept = ("strides", "pads_begin", "pads_end", "rounding_type", "auto_pad")
        pooled = _max_pool()(numbers, dilations=dilations, kernel_shape=given["kernel"], **{k: given[k] for k in kept})
    else:
        pooled = opset.adaptive_max_pool(numbers, op.input_value(1))
    return opset.greater(pooled.output(0), opset.constant(0.0, dtype="float32"))


def _max_pool() -> Any:
    from openvino import opset14  # the first with torch's way to round sizes up

    return opset14.max_pool


class _Signs:
    """Finds the numbers of a graph that can be negative or 0. Numbers that depend only on sizes count as positive."""

    def __init__(self, values: set[str]) -> None:
        """``values``: names of the operators that depend on the inputs' values."""
        self._values = values

    def makes(self, op: Any) -> bool:
        """Returns true for an operator that makes NaN or infinity from some finite numbers."""
        kind = op.get_type_name()
        if op.get_output_size() == 0 or not op.get_input_size() or not _is_float(op.input_value(0)):
            return False
        if kind == "Divide":
            return not self._is_positive(op.input_value(1))
        if kind == "Sqrt":
            return not self.is_not_negative(op.input_value(0))
        if kind == "Power":
            exponent = _numbers(op.input_value(1))
            if exponent is not None and (exponent >= 0).all():
                return not ((exponent % 1 == 0).all() or self.is_not_negative(op.input_value(0)))
            return not self._is_positive(op.input_value(0))
        if kind == "Log":
            return not self._is_positive(op.input_value(0))
        return kind in _MAKERS

    def _is_positive(self, value: Any, depth: int = _DEPTH) -> bool:
        """Returns true if a value is certainly greater than 0, or NaN."""
        numbers = _numbers(value)
        if numbers is not None:
            return bool((numbers > 0).all())
        op = value.get_node()
        if op.get_friendly_name() not in self._values:
            return True
        kind = op.get_type_name()
        if depth == 0:
            return False
        if kind == "Clamp":
            return bool(op.get_attributes()["min"] > 0)
        sources = [op.input_value(i) for i in range(op.get_input_size())]
        if kind == "Add":
            return self._one_and_other(sources, depth)
        if kind == "Maximum":
            return any(self._is_positive(source, depth - 1) for source in sources)
        if kind in ("Multiply", "Divide", "Minimum"):
            return all(self._is_positive(source, depth - 1) for source in sources)
        return kind in ("Sqrt", "Convert", "Broadcast", "Reshape", "Unsqueeze") and self._is_positive(
            sources[0], depth - 1
        )

    def _one_and_other(self, sources: list[Any], depth: int) -> bool:
        """Returns true if one summand is positive and the other is not negative."""
        return any(
            self._is_positive(one, depth - 1) and self.is_not_negative(other, depth - 1)
            for one, other in (sources, reversed(sources))
        )

    def is_not_negative(self, value: Any, depth: int = _DEPTH) -> bool:
        """Returns true if a value is certainly at least 0, or NaN."""
        numbers = _numbers(value)
        if numbers is not None:
            return not bool((numbers < 0).any())
        op = value.get_node()
        if op.get_friendly_name() not in self._values:
            return True
        kind = op.get_type_name()
        if kind in _NOT_NEGATIVE:
            return True
        if depth == 0:
            return False
        if kind == "Clamp":
            return bool(op.get_attributes()["min"] >= 0)
        sources = [op.input_value(i) for i in range(op.get_input_size())]
        if kind == "Select":
            return all(self.is_not_negative(source, depth - 1) for source in sources[1:])
        if kind == "Maximum":
            return any(self.is_not_negative(source, depth - 1) for source in sources)
        if kind == "SquaredDifference" or (kind == "Multiply" and _same(*sources)):
            return True
        if kind == "Power":
            exponent = _numbers(sources[1])
            return exponent is not None and bool((exponent % 2 == 0).all())
        if kind in ("Add", "Multiply", "Divide", "Minimum"):
            return all(self.is_not_negative(source, depth - 1) for source in sources)
        passed = ("ReduceMean", "ReduceSum", "ReduceMax", "Convert", "Broadcast", "Reshape", "Unsqueeze")
        return kind in passed and self.is_not_negative(sources[0], depth - 1)


def _same(one: Any, other: Any) -> bool:
    return bool(
        one.get_node().get_friendly_name() == other.get_node().get_friendly_name()
        and one.get_index() == other.get_index()
    )


def _numbers(value: Any) -> Any:
    """Returns the values of a constant, also of a converted one; None for any other value."""
    node = value.get_node()
    while node.get_type_name() == "Convert":
        node = node.input_value(0).get_node()
    return node.get_data() if node.get_type_name() == "Constant" else None
