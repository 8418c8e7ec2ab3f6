"""Lowers operators to functions that treat NaN and infinities as torch does.

TVM lowers maxima to comparisons that drop NaN, starts them from the least finite number, so that the maximum of
infinities is finite and its index -1, and takes ``x != x`` for false.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

Lowering = Callable[[Any, Any], Any]
"""Lowers a call of an operator: (TVM's block builder, the call) -> the new expression."""


def lowerings() -> dict[str, Lowering]:
    """Returns the functions that replace TVM's own in ``LegalizeOps``, by the operator's name."""
    found: dict[str, Lowering] = {"relax.nn.relu": _relu, "relax.clip": _clip}
    found |= {f"relax.nn.max_pool{dimensions}d": _max_pool for dimensions in (1, 2, 3)}
    found |= {f"relax.{name}": _elementwise(name, function) for name, function in _ELEMENTWISE.items()}
    found |= {"relax.max": _extreme(largest=True), "relax.min": _extreme(largest=False)}
    found |= {"relax.argmax": _index(largest=True), "relax.argmin": _index(largest=False)}
    return {name: _if_float(name, lower) for name, lower in found.items()}


def _if_float(name: str, lower: Lowering) -> Lowering:
    """Leaves calls on integers to TVM's own function."""
    import tvm

    own = tvm.ir.Op.get(name).get_attr("FLegalize")
    return lambda builder, call: (lower if "float" in str(call.args[0].ty.dtype) else own)(builder, call)


def _relu(builder: Any, call: Any) -> Any:
    return _clipped(builder, call.args[0], 0.0, math.inf, "relu")


def _clip(builder: Any, call: Any) -> Any:
    tensor, low, high = call.args
    return _clipped(builder, tensor, float(low.value), float(high.value), "clip")


def _clipped(builder: Any, tensor: Any, low: float, high: float, name: str) -> Any:
    from tvm import te, tirx

    def clip(x: Any) -> Any:
        least, most = tirx.const(low, x.dtype), tirx.const(high, x.dtype)

        def value(*place: Any) -> Any:
            raised = tirx.Select(x(*place) < least, least, x(*place))
            return raised if math.isinf(high) else tirx.Select(raised > most, most, raised)

        return te.compute(x.shape, value)

    return builder.call_te(clip, tensor, primfunc_name_hint=name)


_ELEMENTWISE: dict[str, Callable[[Any, Any, Any], Any]] = {
    "maximum": lambda topi, a, b: topi.where(topi.greater_equal(a, b), a, topi.where(topi.isnan(a), a, b)),
    "minimum": lambda topi, a, b: topi.where(topi.less_equal(a, b), a, topi.where(topi.isnan(a), a, b)),
    "not_equal": lambda topi, a, b: topi.logical_or(topi.not_equal(a, b), topi.isnan(a)),
    "equal": lambda topi, a, b: topi.logical_and(topi.equal(a, b), topi.logical_not(topi.isnan(a))),
    "greater_equal": lambda topi, a, b: topi.logical_and(topi.greater_equal(a, b), topi.logical_not(topi.isnan(a))),
    "less_equal": lambda topi, a, b: topi.logical_and(topi.less_equal(a, b), topi.logical_not(topi.isnan(a))),
}
"""Operators on two tensors, which are broadcast against each other: (TVM's operators, a, b) -> result."""


def _elementwise(name: str, function: Callable[[Any, Any, Any], Any]) -> Lowering:
    def lower(builder: Any, call: Any) -> Any:
        from tvm import topi

        return builder.call_te(lambda a, b: function(topi, a, b), *call.args, primfunc_name_hint=name)

    return lower


def _goes_first(a: Any, b: Any, largest: bool) -> Any:
    """Returns the condition under which torch prefers ``a``, the earlier value, to ``b`` in a maximum or minimum."""
    from tvm import tirx

    return tirx.any(a >= b if largest else a <= b, tirx.isnan(a))


def _reducer(largest: bool) -> Any:
    from tvm import te, tirx

    return te.comm_reducer(
        lambda a, b: tirx.Select(_goes_first(a, b, largest), a, b),
        lambda dtype: tirx.const(-math.inf if largest else math.inf, dtype),
    )


def _max_pool(builder: Any, call: Any) -> Any:
    """Lowers max pooling over the last dimensions. ``call.attrs`` are Relax's ``Pool2DAttrs`` or their like."""
    from tvm import te, tirx, topi

    given = call.attrs
    kernel, strides, dilation = list(given.pool_size), list(given.strides), list(given.dilation)
    before, after = given.padding[: len(kernel)], given.padding[len(kernel) :]
    after = [pad + (stride - 1 if given.ceil_mode else 0) for pad, stride in zip(after, strides, strict=True)]

    def max_pool(x: Any) -> Any:
        fixed = [0] * (len(x.shape) - len(kernel))
        padded = topi.nn.pad(x, [*fixed, *before], [*fixed, *after], tirx.const(-math.inf, x.dtype))
        window = [te.reduce_axis((0, size), name="window") for size in kernel]

        def value(*place: Any) -> Any:
            corner = zip(place[len(fixed) :], strides, window, dilation, strict=True)
            inside = [index * stride + offset * gap for index, stride, offset, gap in corner]
            return _reducer(largest=True)(padded(*place[: len(fixed)], *inside), axis=window)

        return te.compute(list(call.ty.shape.values), value)

    return builder.call_te(max_pool, call.args[0], primfunc_name_hint="max_pool")


def _extreme(largest: bool) -> Lowering:
    """Lowers the maximum or minimum along axes; without axes, of the whole tensor."""

    def lower(builder: Any, call: Any) -> Any:
        return builder.call_te(
            lambda x: _Reduction(x, call).extreme(largest),
            call.args[0],
            primfunc_name_hint="max" if largest else "min",
        )

    return lower


def _index(largest: bool) -> Lowering:
    """Lowers the index of the first maximum or minimum along an axis; without an axis, in the flattened tensor."""

    def lower(builder: Any, call: Any) -> Any:
        return builder.call_te(
            lambda x: _Reduction(x, call).first(_Reduction(x, call).extreme(largest)),
            call.args[0],
            primfunc_name_hint="argmax" if largest else "argmin",
        )

    return lower


class _Reduction:
    """The loops of a reduction of a tensor along the axes of a call."""

    def __init__(self, tensor: Any, call: Any) -> None:
        from tvm import te

        rank, axes = len(tensor.shape), call.attrs.axis
        if axes is None:
            axes = range(rank)
        elif not isinstance(axes, Sequence):
            axes = [axes]
        self.tensor = tensor
        self.loops = {
            axis: te.reduce_axis((0, tensor.shape[axis]), name=f"along_{axis}")
            for axis in sorted(int(axis) % rank for axis in axes)
        }
        self.keeps = bool(call.attrs.keepdims)
        self.shape = list(call.ty.shape.values)
        self.dtype = str(call.ty.dtype.dtype)

    def value(self, place: Sequence[Any]) -> Any:
        """Returns the tensor's value in the loops for a place of the result."""
        kept = iter(place)
        outer = {axis: next(kept) for axis in range(len(self.tensor.shape)) if axis not in self.loops or self.keeps}
        return self.tensor(*((outer | self.loops)[axis] for axis in range(len(self.tensor.shape))))

    def extreme(self, largest: bool) -> Any:
        """Returns the maximum or minimum."""
        from tvm import te

        loops = list(self.loops.values())
        return te.compute(self.shape, lambda *place: _reducer(largest)(self.value(place), axis=loops))

    def first(self, extreme: Any) -> Any:
        """Returns the index of the first NaN, or else of the first value that equals the extreme."""
        from tvm import te, tirx

        index = tirx.const(0, self.dtype)
        for axis, loop in self.loops.items():
            index = index * self.tensor.shape[axis] + loop.var
        last = tirx.max_value(self.dtype)

        def value(*place: Any) -> Any:
            found = self.value(place)
            is_it = tirx.any(found == extreme(*place), tirx.isnan(found))
            return te.min(tirx.Select(is_it, index, last), axis=list(self.loops.values()))

        return te.compute(self.shape, value)
