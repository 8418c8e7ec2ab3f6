"""Does the hybrid find what the detector finds: each segment's outputs, then the boxes."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from . import bundle
from .errors import OptionError, VerificationError


@dataclass(frozen=True)
class Thresholds:
    """What counts as equal.

    Attributes:
        iou: least intersection over union of two boxes that are the same.
        score: greatest difference of their scores.
        recall: least share of boxes that have a partner, both ways.
        relative_error: greatest |difference| of a segment's output, relative to the output's greatest |value|.
    """

    iou: float
    score: float
    recall: float
    relative_error: float


THRESHOLDS: Mapping[str, Thresholds] = {
    "fp32": Thresholds(iou=0.99, score=1e-3, recall=1.0, relative_error=1e-3),
    "bf16": Thresholds(iou=0.8, score=0.1, recall=0.9, relative_error=0.1),
}
"""By precision. bf16 has 8 bits of mantissa: 2**-8 = 0.4 % a rounding, some tens of roundings deep."""


def thresholds_of(precision: str) -> Thresholds:
    """The thresholds of a precision.

    Raises:
        OptionError: there are none.
    """
    if precision not in THRESHOLDS:
        raise OptionError.make(
            "verify",
            "thresholds",
            expected=f"a precision that has some ({', '.join(THRESHOLDS)})",
            got=f"'{precision}'",
            remedy="Give thresholds=Thresholds(...).",
        )
    return THRESHOLDS[precision]


_CUT = 1e-3
"""Scores that differ by no more are level."""

_MAX_CUT = 0.5
"""No detector's threshold is above it."""


@dataclass(frozen=True)
class TensorError:
    """How far one output of a segment is from the detector's, on the variant of ``backend``."""

    segment: str
    output: str
    relative_error: float
    cosine: float
    backend: str = ""


@dataclass(frozen=True)
class BoxMatch:
    """Boxes of one picture, detector against hybrid, matched by label and IoU, best scores first.

    ``at_cut`` counts the boxes of either side without a partner whose score is below one half and level with the
    other side's lowest one: there the detector's own threshold, or its limit of boxes, cuts, and rounding decides
    which side of it they are on.
    """

    expected: int
    found: int
    matched: int
    min_iou: float
    max_score_difference: float
    at_cut: int = 0

    @property
    def recall(self) -> float:
        """Share of all boxes, of both sides, that have a partner or are at the cut; 1 if there are none at all."""
        total = self.expected + self.found
        return (2 * self.matched + self.at_cut) / total if total else 1.0


@dataclass
class Verification:
    """The comparison's result; ``failures`` is empty if the hybrid passed.

    ``not_run`` names the variants that can't run on this machine, and so were not compared, with the reason.
    """

    precision: str
    tensors: list[TensorError] = field(default_factory=list)
    pictures: list[BoxMatch] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    not_run: list[str] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        """Whether nothing failed."""
        return not self.failures

    def to_json(self) -> dict[str, Any]:
        """For the manifest and the report."""
        return asdict(self)


def match_boxes(
    expected: Mapping[str, Tensor], found: Mapping[str, Tensor], *, iou: float = 0.99, score: float = 1.0
) -> BoxMatch:
    """Matches two sets of detections one to one: equal label, IoU at least ``iou``, scores within ``score``.

    Args:
        expected: boxes [n, 4] as (x1, y1, x2, y2), labels [n], scores [n]; best first.
        found: the same, [m, ...].
        iou: least IoU of a pair.
        score: greatest difference of their scores.
    """
    overlap = box_iou(expected["boxes"].double(), found["boxes"].double())
    difference = (expected["scores"].double()[:, None] - found["scores"].double()[None]).abs()
    allowed = (expected["labels"][:, None] == found["labels"][None]) & (overlap >= iou) & (difference <= score)
    pairs: list[tuple[int, int]] = []
    taken = torch.zeros(overlap.shape[1], dtype=torch.bool)
    for i in range(overlap.shape[0]):
        candidates = torch.where(allowed[i] & ~taken, overlap[i], -1.0)
        if candidates.numel() and float(candidates.max()) >= 0:
            j = int(candidates.argmax())
            taken[j] = True
            pairs.append((i, j))
    return BoxMatch(
        expected=overlap.shape[0],
        found=overlap.shape[1],
        matched=len(pairs),
        min_iou=min((float(overlap[pair]) for pair in pairs), default=1.0),
        max_score_difference=max((float(difference[pair]) for pair in pairs), default=0.0),
        at_cut=_at_cut(expected["scores"], {i for i, _ in pairs}, found["scores"], min(score, _CUT))
        + _at_cut(found["scores"], {j for _, j in pairs}, expected["scores"], min(score, _CUT)),
    )


def _at_cut(scores: Tensor, matched: set[int], others: Tensor, tolerance: float) -> int:
    """How many of ``scores`` that have no partner are low, and level with the lowest of ``others``."""
    lowest = float(others.min()) if others.numel() else 1.0
    if lowest >= _MAX_CUT:  # such boxes are what the detector is for
        return 0
    return sum(abs(score - lowest) <= tolerance for i, score in enumerate(scores.tolist()) if i not in matched)


def box_iou(first: Tensor, second: Tensor) -> Tensor:
    """Intersection over union of boxes [n, 4] and [m, 4] (x1, y1, x2, y2): [n, m]. Equal boxes have 1, empty or not."""
    top_left = torch.maximum(first[:, None, :2], second[None, :, :2])
    bottom_right = torch.minimum(first[:, None, 2:], second[None, :, 2:])
    intersection = (bottom_right - top_left).clamp(min=0).prod(dim=2)
    areas = [(boxes[:, 2:] - boxes[:, :2]).clamp(min=0).prod(dim=1) for boxes in (first, second)]
    union = areas[0][:, None] + areas[1][None] - intersection
    equal = (first[:, None] == second[None]).all(dim=2)
    return torch.where(equal, torch.ones_like(union), intersection / union.clamp(min=1e-12))


def compare_tensors(
    segment: str, names: Sequence[str], expected: Sequence[Tensor], got: Sequence[Tensor], backend: str = ""
) -> list[TensorError]:
    """Relative error and cosine of each output; a shape or dtype that differs counts as infinitely wrong."""
    errors = []
    for name, want, have in zip(names, expected, got, strict=True):
        if want.shape != have.shape or want.dtype != have.dtype or not bool(have.isfinite().all()):
            errors.append(TensorError(segment, name, float("inf"), 0.0, backend))
            continue
        flat, other = want.double().flatten(), have.double().flatten()
        scale = float(flat.abs().max()) if flat.numel() else 0.0
        difference = float((flat - other).abs().max()) if flat.numel() else 0.0
        norms = float(flat.norm() * other.norm())
        errors.append(
            TensorError(
                segment,
                name,
                difference / scale if scale else difference,
                float(flat @ other) / norms if norms else 1.0,
                backend,
            )
        )
    return errors


def detections_of(value: Any) -> list[Mapping[str, Tensor]] | None:
    """The value if it is a list of detections (dicts with boxes, labels and scores), else None."""
    if isinstance(value, (list, tuple)) and all(
        isinstance(entry, Mapping) and {"boxes", "labels", "scores"} <= set(entry) for entry in value
    ):
        return list(value)
    return None


def compare_results(verification: Verification, expected: Any, got: Any, thresholds: Thresholds, where: str) -> None:
    """Adds the comparison of one call's results: boxes if they are detections, else every tensor."""
    boxes, found = detections_of(expected), detections_of(got)
    if boxes is None or found is None:
        _compare_values(verification, expected, got, thresholds, where)
        return
    if len(boxes) != len(found):
        verification.failures.append(f"{where}: detections of {len(boxes)} pictures expected, of {len(found)} found")
        return
    for i, (want, have) in enumerate(zip(boxes, found, strict=True)):
        match = match_boxes(want, have, iou=thresholds.iou, score=thresholds.score)
        verification.pictures.append(match)
        if match.recall < thresholds.recall:
            verification.failures.append(
                f"{where}, picture {i}: {match.matched} of {match.expected} boxes found again among {match.found} "
                f"(same label, IoU >= {thresholds.iou}, score within {thresholds.score})"
            )


def _compare_values(verification: Verification, expected: Any, got: Any, thresholds: Thresholds, where: str) -> None:
    from .structure import structure_of

    structure, other = structure_of(expected, where), structure_of(got, where)
    if structure.count != other.count:
        verification.failures.append(f"{where}: {structure.count} tensors expected, {other.count} found")
        return
    names = list(structure.names("output"))
    errors = compare_tensors(where, names, list(structure.flatten(expected)), list(other.flatten(got)))
    verification.tensors += errors
    add_tensor_failures(verification, errors, thresholds)


def add_tensor_failures(verification: Verification, errors: Sequence[TensorError], thresholds: Thresholds) -> None:
    """Notes the outputs that are further off than allowed."""
    for error in errors:
        if not error.relative_error <= thresholds.relative_error:
            segment = f"'{error.segment}' on {error.backend}" if error.backend else f"'{error.segment}'"
            verification.failures.append(
                f"segment {segment}, output '{error.output}': relative error {error.relative_error:.3g} "
                f"(allowed {thresholds.relative_error:g}), cosine {error.cosine:.6f}"
            )


def verify(
    detector: nn.Module,
    path: str | os.PathLike[str],
    inputs: Sequence[tuple[Any, ...]],
    *,
    precision: str = "fp32",
    thresholds: Thresholds | None = None,
    require_detections: bool = True,
) -> Verification:
    """Runs detector and bundle on each of ``inputs`` and compares what they find.

    Args:
        detector: the detector, in eval mode.
        path: the bundle.
        inputs: tuples of the detector's positional arguments.
        precision: whose thresholds hold.
        thresholds: others than :data:`THRESHOLDS`.
        require_detections: fail if the detector finds nothing at all: two empty results prove nothing.

    Returns:
        The comparison; ask ``passed``.
    """
    return compare_modules(
        detector,
        bundle.load(path, emulate_precision=True),
        inputs,
        precision=precision,
        thresholds=thresholds or thresholds_of(precision),
        require_detections=require_detections,
    )


def compare_modules(
    detector: nn.Module,
    hybrid: nn.Module,
    inputs: Sequence[tuple[Any, ...]],
    *,
    precision: str,
    thresholds: Thresholds,
    require_detections: bool = True,
) -> Verification:
    """:func:`verify` for a hybrid that is in memory."""
    verification = Verification(precision)
    with torch.no_grad():
        for i, arguments in enumerate(inputs):
            compare_results(verification, detector(*arguments), hybrid(*arguments), thresholds, f"input {i}")
    if require_detections and verification.pictures and not any(match.expected for match in verification.pictures):
        verification.failures.append(
            "the detector found no box in any picture, so that nothing was compared: give pictures with objects, or "
            "verify=False"
        )
    return verification


def require(verification: Verification) -> None:
    """Raises VerificationError with every failure unless it passed."""
    if verification.passed:
        return
    raise VerificationError.make(
        "verify",
        f"the hybrid in {verification.precision}",
        expected="what the detector finds",
        got="\n  " + "\n  ".join(verification.failures) + "\n",
        remedy="Nothing was saved. Take precision='fp32', leave the segment out, or loosen thresholds= if it is meant.",
    )
