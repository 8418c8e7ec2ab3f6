"""Draws the further sizes at which segments are compared from their ranges, the same in each process."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..common.image_inputs import ImageInputs
from ..common.specs import UNBOUNDED
from ..common.submodules import image_transform
from ..common.tensor_tree import map_tensors
from .call_recording import HeadOperators, Recorded, recording
from .counted_work import WorkCounter
from .derived_shapes import in_proportion, tile_to_shape
from .probe_inputs import resizing_to_smaller
from .shapes import Range, Shapes

_PRIMES = (13, 29, 37, 53, 61, 83, 97, 113, 149, 199, 241, 307, 401, 509)
_STRIDES = (32, 16, 8)

_LARGEST_AREA = 1 << 20
"""Largest area of an image in pixels; larger ones cost seconds and reveal nothing more."""

_RESIZED_SIDE = 96
"""Shorter side of images that a detector resizes itself, in pixels; the largest stride of usual detectors fits."""

_SEED = 16

_COST_PER_SECOND = 100_000_000_000
"""Counted work that a CPU core does in about one second."""


@dataclass(frozen=True)
class Effort:
    """Budget for comparisons at further sizes. It is counted, not timed, because comparisons may decide on segments.

    Attributes:
        cost: counted work of the detector's own runs at all sizes of a conversion together, see
            :class:`.counted_work.Work`; each variant of an engine does as much again.
        least: minimum number of sizes, whatever they cost.
        most: maximum number of sizes.
    """

    cost: int = _COST_PER_SECOND
    least: int = 4
    most: int = 16


THOROUGH = Effort(60 * _COST_PER_SECOND, least=24, most=160)


def drawn_sizes(heights: Range, widths: Range, most: int) -> list[tuple[int, int]]:
    """Draws image sizes (height, width) from ranges, the most informative first.

    The order is: the corners, odd and prime sizes, those beside the multiples of usual strides, each higher than wide
    and wider than high; then any.
    """
    draw = random.Random(_SEED)
    (low_h, high_h), (low_w, high_w) = heights, widths
    near_h, near_w = _near(heights), _near(widths)
    found = [(low_h, high_w), (high_h, low_w)]
    for i in range(most):
        one, other = near_h[i % len(near_h)], near_w[(i * 3 + 1) % len(near_w)]
        found += [(one, other), (_inside(other, heights), _inside(one, widths))]
        found.append((draw.randint(low_h, high_h), draw.randint(low_w, high_w)))
    small = [size for size in dict.fromkeys(found) if size[0] * size[1] <= max(_LARGEST_AREA, low_h * low_w)]
    return small[:most]


def _near(limits: Range) -> list[int]:
    """Returns the most informative sizes of a range, in a fixed shuffled order."""
    low, high = limits
    beside = [k * stride + d for stride in _STRIDES for k in range(1, 1 + 640 // stride) for d in (1, -1)]
    found = [size for size in dict.fromkeys([*_PRIMES, *beside]) if low <= size <= high]
    random.Random(_SEED).shuffle(found)
    return found or list(dict.fromkeys([low, (low + high) // 2, high]))


def _inside(size: int, limits: Range) -> int:
    return min(max(size, limits[0]), limits[1])


def sized_runs(
    detector: nn.Module, example: tuple[Any, ...], images: ImageInputs, shapes: Shapes | None, most: int
) -> Iterator[tuple[nn.Module, tuple[Any, ...]]]:
    """Yields a detector and its arguments at each further size that it may receive, the most informative first.

    Args:
        detector: the detector; one that resizes its images is replaced by a copy that resizes them to a smaller size,
            as in :func:`.probe_inputs.samples_of`.
        example: its arguments.
        images: which of the arguments are images.
        shapes: see :data:`hybrid_rt.capture.shapes.Shapes`. None: any size if the detector resizes images; otherwise
            only the example's, so that nothing is yielded.
        most: maximum number of sizes.
    """
    given = images.sizes(example)
    if not given:
        return
    height, width = given[0]
    if image_transform(detector) is not None:
        smaller = resizing_to_smaller(detector, _RESIZED_SIDE)
        for size in drawn_sizes((61, 199), (61, 199), most):
            yield smaller, images.resized(example, size)
        return
    if isinstance(shapes, Mapping):
        sizes = drawn_sizes(shapes.get("height", (height, height)), shapes.get("width", (width, width)), most)
        low, high = shapes.get("batch", (0, 0))
        batches = list(dict.fromkeys([min(high, low + 2), low, min(high, low + 1)])) if high > 1 else []
        for i in range(max(len(sizes), len(batches))):
            arguments = images.resized(example, sizes[i % len(sizes)])
            yield detector, images.batched(arguments, batches[i % len(batches)]) if batches else arguments
        return
    for size in list(shapes or [])[:most]:
        yield detector, images.resized(example, size)


@dataclass(frozen=True)
class Unneeded:
    """Segments whose calls at further sizes are not compared, because they differ in the number of rows alone.

    Attributes:
        names: the segments.
        calls: number of calls of each other segment in a run.
        cost: counted work of the segments in a run.
    """

    names: Sequence[str] = ()
    calls: Mapping[str, int] = field(default_factory=dict)
    cost: int = 0


class _Ended(BaseException):
    """Ends a run of a detector early. No handler of its code catches this."""


def record_sizes(
    runs: Iterator[tuple[nn.Module, tuple[Any, ...]]],
    names: Sequence[str],
    effort: Effort,
    unneeded: Unneeded = Unneeded(),
) -> list[Recorded]:
    """Records segments at further sizes within the budget. Sizes that the detector refuses are skipped.

    A run ends where only segments are left that are not needed. Its cost counts as if it had gone on.

    Args:
        runs: a detector and its arguments for each size.
        names: the segments.
        effort: the budget.
        unneeded: segments of ``names`` that need not be recorded.
    """
    recorded: list[Recorded] = []
    costs: list[int] = []
    for detector, arguments in runs:
        if len(recorded) >= effort.least and sum(costs) > effort.cost:
            break
        counter = WorkCounter(lambda work: costs.append(work.cost))
        try:
            with (
                torch.no_grad(),
                counter,
                HeadOperators(),
                recording(detector, names) as run,
                _ending_before(detector, run, unneeded),
            ):
                detector(*map_tensors(arguments, Tensor.clone))
        except _Ended:
            costs.append(unneeded.cost)
        except Exception:  # whatever the detector's code raises: what it refuses, the hybrid may refuse
            continue
        recorded.append(run)
    return recorded


@contextmanager
def _ending_before(detector: nn.Module, run: Recorded, unneeded: Unneeded) -> Iterator[None]:
    """Raises :class:`_Ended` at a call of a segment that is not needed, once all others have been called."""

    def end(*_: Any) -> None:
        if all(len(run[name]) >= count for name, count in unneeded.calls.items()):
            raise _Ended

    with ExitStack() as hooks:
        for name in unneeded.names:
            submodule = detector.get_submodule(name)
            hooks.callback(submodule.register_forward_pre_hook(end, prepend=True).remove)
        yield


def sized_inputs(
    inputs: Sequence[Tensor], ranges: Sequence[Sequence[Range]], most: int
) -> Iterator[tuple[Tensor, ...]]:
    """Yields inputs of a module at further sizes within their ranges; those of the first input are drawn.

    The other inputs keep their proportion to the first one; sizes at which they can't are skipped.
    """
    shapes = [tuple(tensor.shape) for tensor in inputs]
    if len(shapes[0]) != 4:
        return
    closed = [
        (low, high if high != UNBOUNDED else max(size * 2, low + 64))
        for size, (low, high) in zip(shapes[0], ranges[0], strict=True)
    ]
    batches = list(dict.fromkeys([closed[0][0], min(closed[0][1], closed[0][0] + 2)]))
    for i, size in enumerate(drawn_sizes(closed[2], closed[3], most)):
        found = in_proportion(shapes, (batches[i % len(batches)], shapes[0][1], *size), ranges)
        if found is not None:
            yield tuple(map(tile_to_shape, inputs, found))
