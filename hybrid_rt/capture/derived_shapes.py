"""Derives inputs at a second size, to find segments that are right at only one size before they are saved."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..common.specs import UNBOUNDED

_STRIDE = 32
"""Stride of a usual backbone, in pixels; feature pyramids support only multiples of it."""

_LEAST_SIDE = 160
"""Smallest side in pixels, see :func:`small_shapes`."""

Range = tuple[int, int]


def second_shapes(shapes: Sequence[Sequence[int]], ranges: Sequence[Sequence[Range]]) -> list[tuple[int, ...]] | None:
    """Returns other shapes for the inputs of a module, within the ranges.

    Args:
        shapes: the shapes of an example, one per input.
        ranges: (min, max) of each dimension of each input.

    Returns:
        Shapes with another batch and about half the sides for the first input, and in the same proportion for the
        others; None if no dimension is free or the proportion can't be kept.
    """
    first = tuple(
        _other(d, size, *ranges[0][d], is_side=len(shapes[0]) == 4 and d > 1) for d, size in enumerate(shapes[0])
    )
    return None if first == tuple(shapes[0]) else in_proportion(shapes, first, ranges)


def small_shapes(shapes: Sequence[Sequence[int]], ranges: Sequence[Sequence[Range]]) -> list[tuple[int, ...]]:
    """Returns the shapes with repeatedly halved sides, such that pyramids keep several cells and a second size exists.

    Use it for runs of which only the results matter: a usual backbone takes seconds at its intended size.

    Args:
        shapes: see :func:`second_shapes`.
        ranges: see :func:`second_shapes`.
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
    """Returns ``first`` and the other inputs' shapes in the same proportion; None if the ranges do not allow them."""
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
    """Repeats or cuts a tensor to a shape of the same rank, so that the values keep their distribution."""
    for d, size in enumerate(shape):
        tensor = tensor.index_select(d, torch.arange(size) % tensor.shape[d])
    return tensor.contiguous()
