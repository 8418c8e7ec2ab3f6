"""Other values for a detector's inputs, for heads whose recording may have kept values of the example."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ..common.tensor_tree import map_tensors


def _empty(tensor: Tensor) -> Tensor:
    return torch.zeros_like(tensor) if tensor.is_floating_point() else tensor


def _dimmed(tensor: Tensor) -> Tensor:
    if tensor.dtype == torch.uint8:
        return tensor // 2
    return tensor / 2 if tensor.is_floating_point() else tensor


def _mirrored(tensor: Tensor) -> Tensor:
    return tensor.flip(-1) if tensor.dim() else tensor


def _moved(tensor: Tensor) -> Tensor:
    axes = range(tensor.dim())[-2:]
    return tensor.roll([tensor.shape[axis] // 2 for axis in axes], [*axes]) if axes else tensor


_CHANGES: tuple[Callable[[Tensor], Tensor], ...] = (_empty, _dimmed, _mirrored, _moved)


def with_other_values(detector: nn.Module, example: tuple[Any, ...]) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """Yields arguments with the example's sizes and other values, each with the detector's result.

    Floats are zero, halved, mirrored, and moved by half their size; bytes all but zero; other numbers, which may be
    indices, only change places. Leaves out arguments that the detector refuses.

    Args:
        detector: The detector.
        example: Its positional arguments.
    """
    for change in _CHANGES:
        arguments = map_tensors(example, change)
        try:
            with torch.no_grad():
                result = detector(*map_tensors(arguments, Tensor.clone))
        except Exception:  # whatever the detector's code raises: what it refuses, the hybrid may refuse
            continue
        yield arguments, result
