"""Inputs at a second size: what is right at one size only is found out before it is saved."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .specs import UNBOUNDED

_STRIDE = 32
"""Pixels: the whole strides of a usual backbone, as feature pyramids can't take every size."""

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
    if first == tuple(shapes[0]):
        return None
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


def tiled(tensor: Tensor, shape: Sequence[int]) -> Tensor:
    """The tensor repeated or cut to a shape of the same rank: values stay such as they were."""
    for d, size in enumerate(shape):
        tensor = tensor.index_select(d, torch.arange(size) % tensor.shape[d])
    return tensor.contiguous()
