"""Inputs at a second size: what is right at one size only is found out before it is saved."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..common.specs import UNBOUNDED

_STRIDE = 32
"""Pixels: the whole strides of a usual backbone, as feature pyramids can't take every size."""

_LEAST_SIDE = 160
"""Pixels; see :func:`small_shapes`."""

Range = tuple[int, int]


def second_shapes(shapes: Sequence[Sequence[int]], ranges: Sequence[Sequence[Range]]) -> list[tuple[int, ...]] | None:
    """Other shapes for the inputs of a module, inside of the ranges.

    Args:
        shapes: the shapes of an example, one of each input.
        ranges: (min, max) of each dimension of each input.

    Returns:
        The first input at another batch and about half the sides, the others in the same proportion; None if no
        dimension is free or the proportion can't be kept.
    """
    first = tuple(
        _other(d, size, *ranges[0][d], is_side=len(shapes[0]) == 4 and d > 1) for d, size in enumerate(shapes[0])
    )
    return None if first == tuple(shapes[0]) else in_proportion(shapes, first, ranges)


def small_shapes(shapes: Sequence[Sequence[int]], ranges: Sequence[Sequence[Range]]) -> list[tuple[int, ...]]:
    """The shapes with sides halved as long as pyramids keep levels of several cells and a second size can be found.

    For runs whose results count and not their time: a usual backbone takes seconds at the size that it is made for.

    Args:
        shapes: see :func:`second_shapes`.
        ranges: likewise.
    """
    small = [tuple(shape) for shape in shapes]
    while len(small[0]) == 4:
        sides = [size // 2 // _STRIDE * _STRIDE for size in small[0][2:]]
        if min(sides) < _LEAST_SIDE or any(side < low for side, (low, _) in zip(sides, ranges[0][2:], strict=True)):
            break
        halved = in_proportion(small, (*small[0][:2], *sides), ranges)
        if halved is None or second_shapes(halved, ranges) is None:
            break
        small = halved
    return small


def in_proportion(
    shapes: Sequence[Sequence[int]], first: tuple[int, ...], ranges: Sequence[Sequence[Range]]
) -> list[tuple[int, ...]] | None:
    """Returns ``first`` and the other inputs' shapes changed as it was; None if the ranges do not allow it."""
    found = [first]
    for shape, limits in zip(shapes[1:], ranges[1:], strict=True):
        other = []
        for d, (size, (low, high)) in enumerate(zip(shape, limits, strict=True)):
            old, new = (shapes[0][d], first[d]) if len(shape) == len(first) else (1, 1)
            if low == high:
                old, new = 1, 1
            if size * new % old:
                return None
            other.append(size * new // old)
            if not (low <= other[-1] and (high == UNBOUNDED or other[-1] <= high)):
                return None
        found.append(tuple(other))
    return found


def _other(d: int, size: int, low: int, high: int, *, is_side: bool) -> int:
    limit = size * 2 + 1 if high == UNBOUNDED else high
    half = size // 2 // _STRIDE * _STRIDE
    wanted = [max(_STRIDE, half), size * 2] if is_side else [size + 1, size - 1]
    for candidate in (*wanted, max(1, low), limit):
        if candidate != size and low <= candidate <= limit:
            return candidate
    return size


def tile_to_shape(tensor: Tensor, shape: Sequence[int]) -> Tensor:
    """The tensor repeated or cut to a shape of the same rank: values stay such as they were."""
    for d, size in enumerate(shape):
        tensor = tensor.index_select(d, torch.arange(size) % tensor.shape[d])
    return tensor.contiguous()
