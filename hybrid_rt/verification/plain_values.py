"""Results that hold more than tensors: numbers, texts and None are compared here, the tensors as everywhere."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from ..common.errors import CaptureError
from ..common.structure import structure_of
from ..common.tensor_tree import node_of
from ..common.value_tree import opened

_PLAIN = (bool, int, float, str, type(None))


def holds_tensors_only(value: Any) -> bool:
    """Tells whether a result is a nest of tensors without anything else in it, such as an empty list."""
    return all(isinstance(leaf, Tensor) for _, leaf in _leaves(value, ""))


def is_comparable(value: Any) -> bool:
    """Tells whether a result can be compared as it is: tensors only, in lists and dicts of one type each."""
    if not holds_tensors_only(value):
        return False
    try:
        structure_of(value, "result")
    except CaptureError:
        return False
    return True


def without_plain_values(expected: Any, found: Any, where: str, relative_error: float) -> tuple[Any, Any, list[str]]:
    """Compares what is no tensor in two results.

    Args:
        expected: what the detector returned; dataclasses count as dicts of their fields.
        found: what the hybrid returned.
        where: begins each text.
        relative_error: that a number with a fraction may have.

    Returns:
        Both with nothing but tensors in them, as dicts by their places if there was anything else or containers mix
        types, and how the rest differs.

    Raises:
        CaptureError: the detector returns an object that can't be compared.
    """
    expected, found = opened(expected), opened(found)
    if is_comparable(expected) and is_comparable(found):
        return expected, found, []
    wanted, had = dict(_leaves(expected, "")), dict(_leaves(found, ""))
    for place, leaf in wanted.items():
        if not isinstance(leaf, (*_PLAIN, Tensor)) and node_of(leaf) is None:
            raise CaptureError.make(
                "capture",
                f"the detector's result, {place}",
                expected="tensors, numbers, texts and None in lists, tuples, dicts and dataclasses",
                got=f"{type(leaf).__name__} {leaf!r}"[:200],
                remedy="Wrap the detector in a module that returns such values.",
                code="value-not-plain",
            )
    differences = [
        f"{where}, output '{place}': {_told(wanted.get(place))} expected, {_told(had.get(place))} found"
        for place in dict.fromkeys((*wanted, *had))
        if not _equal(wanted.get(place), had.get(place), relative_error)
    ]
    return _tensors(wanted), _tensors(had), differences


def _tensors(leaves: Mapping[str, Any]) -> dict[str, Tensor]:
    return {place: leaf for place, leaf in leaves.items() if isinstance(leaf, Tensor)}


def _leaves(value: Any, place: str) -> Iterator[tuple[str, Any]]:
    """Yields each leaf, and each empty container, with the keys and indices that lead to it."""
    node = node_of(value)
    if node is None or not node.keys:
        yield place, value
        return
    for key in node.keys:
        yield from _leaves(value[key], f"{place}.{key}" if place else str(key))


def _equal(expected: Any, found: Any, relative_error: float) -> bool:
    if isinstance(expected, Tensor) or isinstance(found, Tensor):
        return isinstance(expected, Tensor) and isinstance(found, Tensor)  # their values are compared elsewhere
    if isinstance(expected, float) and isinstance(found, float):
        return math.isclose(expected, found, rel_tol=relative_error) or (expected != expected and found != found)
    if node_of(expected) is not None or node_of(found) is not None:
        return node_of(expected) is not None and node_of(found) is not None  # both without anything in them
    return type(expected) is type(found) and bool(expected == found)


def _told(value: Any) -> str:
    return "a tensor" if isinstance(value, Tensor) else repr(value)[:100]
