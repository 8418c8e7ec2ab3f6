"""Finds 64-bit integers in a segment, for engines that compute with 32 bits and overflow without an error."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ..common.tensor_tree import tensors_in
from .side_effects import user_line

_SMALL = 2**24
"""Integers that a segment computes from floats, such as indices, count as small if no recorded one exceeds this."""

_FIT = torch.iinfo(torch.int32)
"""Integers that depend only on sizes and constants are the same in each call, for given sizes. They must fit."""

_BY_INDEX = {
    "aten::embedding",
    "aten::gather",
    "aten::index",
    "aten::index_put",
    "aten::index_put_",
    "aten::index_select",
    "aten::one_hot",
    "aten::scatter",
    "aten::scatter_",
    "aten::scatter_add",
    "aten::take",
}
"""Operators whose index is bounded by the size of the tensor that it indexes."""

_DIVISIONS = {"aten::div", "aten::divide", "aten::floor_divide"}
"""OpenVINO rounds integer quotients towards zero, whereas torch's floor division rounds down."""

_POWERS = {"aten::pow", "aten::float_power"}
"""OpenVINO computes powers of integers in float32."""

_IN_FLOAT = _POWERS | {
    "aten::remainder",
    "aten::fmod",
    "aten::relu",
    "aten::relu_",
    "aten::amax",
    "aten::amin",
    "aten::max",
    "aten::min",
}
"""OpenVINO computes these operators on integers in float32."""

_SUMS = {"aten::sum", "aten::cumsum", "aten::prod"}

_BYTES = {torch.uint8, torch.int8}
"""OpenVINO saturates these types, whereas torch wraps around, and rounds their quotients."""

_EXACT_OF_BYTES = {
    f"aten::{name}"
    for name in [
        "amax",
        "amin",
        "argmax",
        "argmin",
        "argsort",
        "bitwise_and",
        "bitwise_not",
        "bitwise_or",
        "bitwise_xor",
        "clamp",
        "clamp_max",
        "clamp_min",
        "constant_pad_nd",
        "fill",
        "flip",
        "full_like",
        "masked_fill",
        "max",
        "maximum",
        "min",
        "minimum",
        "ones_like",
        "relu",
        "roll",
        "sort",
        "sum",
        "topk",
        "tril",
        "triu",
        "where",
        "zeros_like",
    ]
}
"""Operators on bytes that OpenVINO computes exactly, in addition to copies, views and casts."""

_MOVES = {"aten::clone", "aten::cat", "aten::stack", "aten::repeat", "aten::copy_", "aten::_reshape_copy"}

_UNSET = {"aten::empty", "aten::empty_like", "aten::empty_strided", "aten::new_empty", "aten::new_empty_strided"}
"""Operators whose results are uninitialised memory."""

_ZERO_TESTS = {"aten::eq", "aten::ne"}


def wide_integers(
    run: Callable[[Sequence[Tensor]], Sequence[Tensor]],
    calls: Iterable[tuple[Tensor, ...]],
    outputs: Sequence[str],
) -> str:
    """Returns the first computation of a segment with 64-bit integers, with its source line; empty if there is none.

    Indices of any origin count as small. Integers that the segment receives, such as timestamps, may have any value,
    whatever the example's are. Integers computed from floats are judged by the recorded calls.

    Args:
        run: Runs the segment in torch.
        calls: Inputs of the recorded calls.
        outputs: Names of the outputs.
    """
    for inputs in calls:
        watch = _Watch(inputs)
        with watch:
            results = run(inputs)
        watch.see_results(results, outputs)
        if watch.finding or not watch.depends_on_values:
            return watch.finding
    return ""


class _Watch(TorchDispatchMode):
    """Tracks 64-bit integers from an input, or from a cast of floats, to the operators that use them."""

    def __init__(self, inputs: tuple[Tensor, ...]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.finding = ""
        self._given = {id(tensor): tensor for tensor in inputs if tensor.dtype == torch.int64}
        self._made: dict[int, Tensor] = {}
        self._uses_made = False
        self._signed: dict[int, Tensor] = {}  # cast from floats, so possibly negative, unlike an index from argmax
        self._free = {id(tensor): tensor for tensor in inputs if tensor.dtype == torch.int32}  # may have any value
        self._fitting: dict[int, Tensor] = {}  # checked tensors, kept alive so that their ids stay unique
        self._unset: dict[int, Tensor] = {}

    @property
    def depends_on_values(self) -> bool:
        """Returns true if another call may reveal more, because integers made from floats are used or returned.

        The indices that max pooling returns beside its result are usually neither.
        """
        return self._uses_made

    def see_results(self, outputs: Sequence[Tensor], names: Sequence[str]) -> None:
        for tensor, name in zip(outputs, names, strict=True):
            self._uses_made = self._uses_made or id(tensor) in self._made
            if not self.finding and id(tensor) in self._given:
                self.finding = f"the output '{name}', whole numbers in int64 that come in"

    def __torch_dispatch__(
        self, operator: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Runs an operator and inspects it. torch calls this for each operator."""
        result = operator(*args, **(kwargs or {}))
        if not self.finding:
            self._see(operator._schema, args, list(tensors_in((args, kwargs or {}))), list(tensors_in(result)))
        return result

    def _see(self, schema: Any, args: tuple[Any, ...], given: list[Tensor], made: list[Tensor]) -> None:
        name = schema.name
        shown = [output.alias_info for output in schema.returns if output.alias_info is not None]
        is_view = bool(shown) and not any(alias.is_write for alias in shown)
        if name in _UNSET or (is_view and any(id(tensor) in self._unset for tensor in given)):
            self._unset.update((id(tensor), tensor) for tensor in made)
            return
        for tensor in made:
            self._unset.pop(id(tensor), None)
        given = [tensor for tensor in given if id(tensor) not in self._unset]
        if any(tensor.dtype == torch.float64 and tensor.dim() for tensor in (*given, *made)):
            self._note(f"{name} in float64")
            return
        if any(self._is_too_wide(tensor) for tensor in (*given, *made)):
            self._note(f"{name} with whole numbers in int64 that do not fit into 32 bits")
            return
        if any(map(_is_whole, made)):
            self._see_inexact(name, args, given, made, is_view)
            if any(id(tensor) in self._free for tensor in given) and name not in _BY_INDEX:
                self._free.update((id(tensor), tensor) for tensor in made if _is_whole(tensor))
        is_cast = name == "aten::_to_copy" and _has_floats(given)
        if (is_cast or any(id(tensor) in self._signed for tensor in given)) and not _is_positive(name, args):
            self._signed.update((id(tensor), tensor) for tensor in made if _is_whole(tensor))
        whole = [tensor for tensor in made if tensor.dtype == torch.int64]
        from_input = any(id(tensor) in self._given for tensor in given)
        uses_made = any(id(tensor) in self._made for tensor in given)
        self._uses_made = self._uses_made or uses_made
        if uses_made or (whole and _has_floats(given)):
            self._made.update((id(tensor), tensor) for tensor in whole)
            if any(tensor.numel() and int(tensor.abs().max()) > _SMALL for tensor in whole):
                self._note(f"{name} with large whole numbers in int64")
        if not from_input or self.finding:
            return
        is_moved = name in _MOVES or any(output.alias_info is not None for output in schema.returns)
        if name in _BY_INDEX:
            first = next(iter(tensors_in(args[:1])), None)
            is_moved = first is not None and id(first) in self._given
            if not is_moved:
                return
        if is_moved:
            self._given.update((id(tensor), tensor) for tensor in whole)
        elif not (_is_bounded(name, args) or _is_zero_test(name, args, made)):
            self._note(f"{name} with whole numbers in int64 that come in")

    def _see_inexact(
        self, name: str, args: tuple[Any, ...], given: list[Tensor], made: list[Tensor], is_view: bool
    ) -> None:
        """Notes operators that OpenVINO computes differently on integers of any width."""
        is_free = any(id(tensor) in self._free for tensor in given)
        if any(tensor.dtype in _BYTES for tensor in given) and not (is_view or _is_exact_of_bytes(name)):
            self._note(f"{name} of whole numbers in 8 bits, which are clipped there")
        elif is_free and name in _SUMS:
            self._note(f"{name} of whole numbers in int32, which may not fit into 32 bits, as torch's int64 does")
        elif name == "aten::cumsum" and any(tensor.dtype == torch.bool for tensor in given):
            self._note(f"{name} of a mask, which stays one there")
        elif name in _DIVISIONS:
            numbers = [number for number in args[:2] if isinstance(number, int)]
            may_be_negative = is_free or any(
                id(tensor) in self._signed or _least(tensor) < 0 for tensor in given if _is_whole(tensor)
            )
            if may_be_negative or any(number < 0 for number in numbers):
                self._note(f"{name} of whole numbers that may be negative, which rounds to zero there")
        elif name in _IN_FLOAT:
            numbers_of = [tensor for tensor in (*given, *made) if _is_whole(tensor)]
            if is_free or any(max(_most(tensor), -_least(tensor)) > _SMALL for tensor in numbers_of):
                self._note(f"{name} with large whole numbers, which it computes in float32")

    def _is_too_wide(self, tensor: Tensor) -> bool:
        """Returns true for a tensor that does not fit into 32 bits. Inputs are exempt, as each call checks them."""
        if (
            tensor.dtype != torch.int64
            or not tensor.numel()
            or id(tensor) in self._given
            or id(tensor) in self._fitting
        ):
            return False
        self._fitting[id(tensor)] = tensor
        least, most = torch.aminmax(tensor)
        return int(least) < _FIT.min or int(most) > _FIT.max

    def _note(self, what: str) -> None:
        self.finding = f"{what} ({user_line()})"


def _is_exact_of_bytes(name: str) -> bool:
    is_copy = name in _MOVES or name in _BY_INDEX or name == "aten::_to_copy"
    return is_copy or name.removesuffix("_") in _EXACT_OF_BYTES


def _is_positive(name: str, args: tuple[Any, ...]) -> bool:
    """Returns true for operators whose result is never negative."""
    is_clamped = name in ("aten::clamp", "aten::clamp_min") and len(args) > 1 and isinstance(args[1], (int, float))
    return name in ("aten::abs", "aten::relu") or (is_clamped and args[1] >= 0)


def _is_whole(tensor: Tensor) -> bool:
    return not (tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool)


def _least(tensor: Tensor) -> int:
    return int(tensor.min()) if tensor.numel() else 0


def _most(tensor: Tensor) -> int:
    return int(tensor.max()) if tensor.numel() else 0


def _is_zero_test(name: str, args: tuple[Any, ...], made: list[Tensor]) -> bool:
    """Returns true for a cast to bool or a comparison with a number, which work on masks of 0 and 1."""
    is_compared = name in _ZERO_TESTS and not isinstance(args[1], Tensor)
    return is_compared or (name == "aten::_to_copy" and all(tensor.dtype == torch.bool for tensor in made))


def _has_floats(given: list[Tensor]) -> bool:
    return any(tensor.is_floating_point() for tensor in given)


def _is_bounded(name: str, args: tuple[Any, ...]) -> bool:
    return name == "aten::clamp" and len(args) == 3 and all(isinstance(x, int) and abs(x) < 2**31 for x in args[1:])
