"""Finds results that a detector does not repeat, using its own results under noise of a rounding error's size.

Near-ties change places in a sorted result, a top-k over equal scores picks others, and InstanceNorm amplifies the
rounding errors of a uniform image to full range. In such cases the hybrid may differ as much as the detector differs
from itself, but no more. The rule for equality stays that of cpp/src/verify; this module reorders results before that.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from .. import _native
from ..common.submodules import modules_with_hooks
from ..common.tensor_tree import map_tensors, plain, tensors_in
from .thresholds import Thresholds

NOISE = 1e-6
"""Noise relative to an input's largest value: a few rounding errors of fp32, a thousandth of its threshold."""

Rerun = Callable[[int], Any]
"""Runs the detector again on the same inputs with noise; the argument is the seed."""

_RUNS = 3
_MOST_RUNS = 8
"""Runs with noise: at first, and at most if the first ones do not explain a difference."""

_MOST_ROWS = 2000

_THIN = 1.0
"""Width in pixels below which the overlap of boxes depends only on rounding errors."""


@dataclass(frozen=True)
class Reconciled:
    """A result of the hybrid in the detector's own order.

    Attributes:
        found: the tensors that replace the hybrid's.
        undetermined: the outputs that the detector does not repeat at all, so that they can't be compared.
    """

    found: list[Tensor]
    undetermined: frozenset[int] = frozenset()


def run_with_noise(detector: nn.Module, arguments: tuple[Any, ...], seed: int) -> Any:
    """Runs a detector on inputs with noise.

    Images in bytes can't have noise of this size. The first submodule that is called with floating-point tensors gets
    it instead.

    Args:
        detector: the detector.
        arguments: its positional arguments.
        seed: seed of the noise.
    """
    if any(tensor.is_floating_point() for tensor in tensors_in(arguments)):
        return detector(*with_noise(arguments, seed))
    handles: list[RemovableHandle] = []

    def add_noise(_: nn.Module, positional: tuple[Any, ...], keyword: dict[str, Any]) -> Any:
        if handles and any(tensor.is_floating_point() for tensor in tensors_in((positional, keyword))):
            remove()
            return with_noise(positional, seed), with_noise(keyword, seed)
        return None

    def remove() -> None:
        while handles:
            handles.pop().remove()

    for _, module in modules_with_hooks(detector):
        handles.append(module.register_forward_pre_hook(add_noise, with_kwargs=True))
    try:
        return detector(*map_tensors(arguments, Tensor.clone))
    finally:
        remove()


def with_noise(values: Any, seed: int) -> Any:
    """Returns copies of inputs, with noise of size :data:`NOISE` added to floating-point tensors."""
    generator = torch.Generator().manual_seed(seed)

    def noisy(tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point() or not tensor.numel():
            return tensor.clone()
        greatest = float(tensor.detach().abs().nan_to_num(0.0, 0.0, 0.0).max()) or 1.0
        noise = torch.rand(tensor.shape, generator=generator) * 2 - 1
        return tensor + (noise * (NOISE * greatest)).to(tensor)

    return map_tensors(values, noisy)


def reconciled(
    expected: Sequence[Tensor], found: Sequence[Tensor], rerun: Callable[[int], Sequence[Tensor]], limit: float
) -> Reconciled:
    """Reorders the rows of a hybrid's outputs if the detector itself does not keep their order under noise.

    Args:
        expected: the detector's outputs.
        found: the hybrid's outputs.
        rerun: returns the detector's outputs on inputs with noise.
        limit: largest relative error of outputs that count as equal.

    Returns:
        The hybrid's outputs unchanged, unless the detector's own differ under noise. In that case each row moves to the
        position of the detector's row that it equals. Rows without a partner count as equal if the detector loses as
        many rows by the noise.
    """
    as_it_is = Reconciled(list(found))
    if len(expected) != len(found) or any(a.shape != b.shape for a, b in zip(expected, found, strict=True)):
        return as_it_is
    if all(_error(*pair, limit) <= limit for pair in zip(expected, found, strict=True)):
        return as_it_is
    runs = [list(rerun(seed)) for seed in range(_RUNS)]
    result = _by_runs(expected, found, runs, limit)
    if result is not None:
        return result
    # One near-tie of many may change places in the hybrid, but in few runs. More runs must not make an output
    # undetermined, because then nothing of it would be compared.
    for seed in range(_RUNS, _MOST_RUNS):
        runs.append(list(rerun(seed)))
        result = _by_runs(expected, found, runs, limit)
        if result is not None and not result.undetermined:
            return result
    return as_it_is


def _by_runs(
    expected: Sequence[Tensor], found: Sequence[Tensor], runs: Sequence[Sequence[Tensor]], limit: float
) -> Reconciled | None:
    """Returns what some runs with noise explain of a difference; None: not all of it."""
    if any([tensor.shape for tensor in run] != [tensor.shape for tensor in expected] for run in runs):
        return None
    differing = {i for i, pair in enumerate(zip(expected, found, strict=True)) if _error(*pair, limit) > limit}
    unstable = [i for i in range(len(expected)) if any(_error(expected[i], run[i], limit) > limit for run in runs)]
    if not differing <= set(unstable):
        return None
    is_undetermined = False
    for axis in (1, 0):
        sides = [_Rows.of(side, unstable, axis) for side in (expected, found, *runs)]
        if sides[0] is None:
            continue
        wanted, had, *others = (side for side in sides if side is not None)
        partners = wanted.partners(had, limit)
        lost = int((partners < 0).sum())
        lost_by_noise = max(int((wanted.partners(other, limit) < 0).sum()) for other in others)
        if lost_by_noise == partners.numel():  # rows of the other axis may tell more
            is_undetermined = True
            continue
        if lost > lost_by_noise:
            return None
        return Reconciled(
            [_in_order(expected[i], x, partners, axis) if i in unstable else x for i, x in enumerate(found)]
        )
    if not is_undetermined:
        return None
    return Reconciled([expected[i] if i in unstable else x for i, x in enumerate(found)], frozenset(unstable))


@dataclass(frozen=True)
class _Rows:
    """Outputs as rows [batch, rows, values]; ``scales`` has the largest finite value of each value's output."""

    values: Tensor
    scales: Tensor

    @classmethod
    def of(cls, tensors: Sequence[Tensor], chosen: Sequence[int], axis: int) -> _Rows | None:
        """Returns the chosen outputs side by side; None if their numbers of rows along the axis differ."""
        outputs = [tensors[i] for i in chosen]
        if any(x.dim() <= axis for x in outputs) or len({x.shape[: axis + 1] for x in outputs}) != 1:
            return None
        batch = outputs[0].shape[0] if axis else 1
        rows = outputs[0].shape[axis]
        if not 0 < rows <= _MOST_ROWS or not batch:
            return None
        flat = [x.detach().cpu().double().reshape(batch, rows, -1) for x in outputs]
        greatest = [x.abs().nan_to_num(0.0, 0.0, 0.0).max().clamp_min(1e-12) for x in flat]
        scales = torch.cat([one.expand(x.shape[2]) for one, x in zip(greatest, flat, strict=True)])
        return cls(torch.cat(flat, dim=2), scales)

    def partners(self, other: _Rows, limit: float) -> Tensor:
        """Returns the index of the equal row in ``other`` for each row, one to one, -1 for none: [batch, rows]."""
        found = torch.full(self.values.shape[:2], -1, dtype=torch.int64)
        # Non-finite values become numbers far from all others, which are about -1..1.
        sides = [(each.values / self.scales).nan_to_num(7e9, 9e9, -9e9) for each in (self, other)]
        for b, (ours, theirs) in enumerate(zip(*sides, strict=True)):
            distances = torch.cdist(ours, theirs, p=float("inf"))
            for i in range(len(ours)):
                nearest = int(distances[i].argmin())
                if float(distances[i, nearest]) <= limit:
                    found[b, i] = nearest
                    distances[:, nearest] = float("inf")
        return found


def _in_order(expected: Tensor, found: Tensor, partners: Tensor, axis: int) -> Tensor:
    """Moves the hybrid's rows to the positions of their partners, and fills the other positions with the detector's."""
    placed = expected.clone()
    if not axis:
        kept = partners[0] >= 0
        placed[kept] = found[partners[0][kept]]
        return placed
    for b, row in enumerate(partners):
        kept = row >= 0
        placed[b, kept] = found[b, row[kept]]
    return placed


def _error(expected: Tensor, found: Tensor, limit: float) -> float:
    error = _native.output_error("", expected, found, limit).relative_error
    return error if error == error else float("inf")


def equal_but_for_noise(expected: Any, found: Any, rerun: Rerun, thresholds: Thresholds, where: str) -> bool:
    """Returns true if detections differ by no more than the detector's own do on inputs with noise.

    Boxes thinner than a pixel are widened to one pixel on both sides, because their overlap depends on rounding. At
    most as many images, boxes, masks and keypoints may differ as the noise alone changes.
    """
    native = thresholds.to_native()
    wanted, had = _widened(expected), _widened(found)
    compared = _native.compare_results(plain(wanted), plain(had), native, where)
    differ = _boxes_differ(compared)
    differing = [_differing(image) for image in compared.pictures]
    by_noise: list[tuple[int, ...]] = [(0, 0, 0, 0)] * len(differing)
    repeats = True
    for seed in range(_MOST_RUNS):  # a run costs as much as the detector does: no more of them than are needed
        run = rerun(seed)
        repeats = repeats and not _boxes_differ(_native.compare_results(plain(expected), plain(run), native, where))
        if not repeats and not differ:
            return True
        images = _native.compare_results(plain(wanted), plain(_widened(run)), native, where).pictures
        if not len(images) == len(differing) > 0:
            return False
        by_noise = [tuple(map(max, most, _differing(image))) for most, image in zip(by_noise, images, strict=True)]
        if not repeats and all(
            count <= most
            for counts in zip(differing, by_noise, strict=True)
            for count, most in zip(*counts, strict=True)
        ):
            return True
    return False


def _boxes_differ(compared: _native.Comparison) -> bool:
    return any(failure.is_of_boxes for failure in compared.failures)


def _differing(match: Any) -> tuple[int, ...]:
    """Returns the number of boxes on either side, masks and keypoints without a match."""
    lost = match.expected - match.matched - match.expected_at_cut
    extra = match.found - match.matched - match.found_at_cut
    return lost, extra, match.masks_differ, match.keypoints_differ


def _widened(images: Sequence[Mapping[str, Tensor]]) -> list[dict[str, Tensor]]:
    changed = []
    for image in images:
        boxes = image["boxes"].detach().double()
        # For boxes in 0..1, a thousandth of the image replaces the pixel.
        least = _THIN if boxes.numel() and float(boxes.abs().max()) > 2 else _THIN / 1000
        sides = (boxes[:, 2:] - boxes[:, :2]).clamp_min(least)
        changed.append({**image, "boxes": torch.cat([boxes[:, :2], boxes[:, :2] + sides], dim=1)})
    return changed
