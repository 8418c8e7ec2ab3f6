"""Checks that results with more than tensors can be compared, and finds their tensors by place."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..common.errors import CaptureError
from ..common.tensor_tree import places_of
from ..common.value_tree import opened

_PLAIN = (bool, int, float, str, type(None))


def comparable(result: Any) -> Any:
    """Returns a detector's result in the form that C++ compares, with dataclasses as dicts of their fields.

    Raises:
        CaptureError: It contains an object that can't be compared.
    """
    result = opened(result)
    for place, leaf in places_of(result):
        if not isinstance(leaf, (*_PLAIN, Tensor)):
            raise CaptureError.make(
                "capture",
                f"the detector's result, {'.'.join(map(str, place))}",
                expected="tensors, numbers, strings and None in lists, tuples, dicts and dataclasses",
                got=f"{type(leaf).__name__} {leaf!r}"[:200],
                remedy="Wrap the detector in a module that returns such values.",
                code="value-not-plain",
            )
    return result


def tensors_by_place(result: Any) -> dict[tuple[Any, ...], Tensor]:
    """Returns the tensors of a result, each by the keys and indices that lead to it."""
    return {place: leaf for place, leaf in places_of(result) if isinstance(leaf, Tensor)}
