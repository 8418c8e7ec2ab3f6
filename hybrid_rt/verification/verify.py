"""Does the hybrid find what the detector finds: each engine's outputs, then the boxes, then a data set's mAP."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..bundle import archive
from ..common.errors import VerificationError
from ..common.structure import map_tensors, structure_of
from . import coco
from .boxes import BoxMatch, box_iou, compare_detections, detections_of, differences, match_boxes
from .coco import CocoDataset, DatasetComparison, Truth
from .thresholds import THRESHOLDS, Thresholds, thresholds_of

__all__ = [
    "THRESHOLDS",
    "BoxMatch",
    "TensorError",
    "Thresholds",
    "Verification",
    "add_tensor_failures",
    "box_iou",
    "compare_dataset",
    "compare_modules",
    "compare_results",
    "compare_tensors",
    "detections_of",
    "match_boxes",
    "require",
    "thresholds_of",
    "verify",
]

_SHOWN = 20
"""Failures that an error shows after the worst ones."""


@dataclass(frozen=True)
class TensorError:
    """How far one output of an engine is from the detector's, on the variant of ``backend``."""

    engine: str
    output: str
    relative_error: float
    cosine: float
    backend: str = ""


@dataclass
class Verification:
    """The comparison's result; ``failures`` is empty if the hybrid passed.

    ``not_run`` names the variants that can't run on this machine, and so were not compared, with the reason.
    ``dataset`` is the mAP of both on annotated pictures, if some were given.
    """

    precision: str
    tensors: list[TensorError] = field(default_factory=list)
    pictures: list[BoxMatch] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    not_run: list[str] = field(default_factory=list)
    dataset: DatasetComparison | None = None

    def __post_init__(self) -> None:
        """What is not part of the record."""
        self._severities: dict[str, tuple[str, float]] = {}
        self.sample: tuple[tuple[Any, ...], Any] | None = None
        """The first arguments on which the detector found boxes (else the first ones), and what it found."""

    @property
    def passed(self) -> bool:
        """Whether nothing failed."""
        return not self.failures

    def fail(self, text: str, kind: str = "", severity: float = 0.0) -> None:
        """Notes a failure; of each ``kind`` the error shows the severest one first."""
        self.failures.append(text)
        if kind:
            known = self._severities.get(text)
            self._severities[text] = (kind, max(severity, known[1]) if known else severity)

    def worst(self) -> list[str]:
        """The worst output of an engine, and the worst picture, of those that failed."""
        found = []
        for wanted in ("engine", "picture"):
            texts = [text for text, (kind, _) in self._severities.items() if kind == wanted]
            if texts:
                found.append(max(texts, key=lambda text: self._severities[text][1]))
        return found

    def to_json(self) -> dict[str, Any]:
        """For the manifest and the report."""
        return asdict(self)


def compare_tensors(
    engine: str, names: Sequence[str], expected: Sequence[Tensor], got: Sequence[Tensor], backend: str = ""
) -> list[TensorError]:
    """Relative error and cosine of each output; a shape or dtype that differs counts as infinitely wrong."""
    errors = []
    for name, want, have in zip(names, expected, got, strict=True):
        if want.shape != have.shape or want.dtype != have.dtype or not bool(have.isfinite().all()):
            errors.append(TensorError(engine, name, float("inf"), 0.0, backend))
            continue
        flat, other = want.double().flatten(), have.double().flatten()
        scale = float(flat.abs().max()) if flat.numel() else 0.0
        difference = float((flat - other).abs().max()) if flat.numel() else 0.0
        norms = float(flat.norm() * other.norm())
        errors.append(
            TensorError(
                engine,
                name,
                difference / scale if scale else difference,
                float(flat @ other) / norms if norms else 1.0,
                backend,
            )
        )
    return errors


def compare_results(verification: Verification, expected: Any, got: Any, thresholds: Thresholds, where: str) -> None:
    """Adds the comparison of one call's results: boxes if they are detections, else every tensor."""
    boxes, found = detections_of(expected), detections_of(got)
    if boxes is None or found is None:
        _compare_values(verification, expected, got, thresholds, where)
        return
    if len(boxes) != len(found):
        verification.fail(f"{where}: detections of {len(boxes)} pictures expected, of {len(found)} found")
        return
    for i, (want, have) in enumerate(zip(boxes, found, strict=True)):
        place = f"{where}, picture {i}"
        match = compare_detections(want, have, thresholds, place)
        verification.pictures.append(match)
        texts = differences(match, thresholds)
        if set(want) != set(have):
            texts.append(f"the fields {', '.join(sorted(want))} expected, {', '.join(sorted(have))} found")
        if texts:
            verification.fail(f"{place}: {'; '.join(texts)}", "picture", match.severity)


def _compare_values(verification: Verification, expected: Any, got: Any, thresholds: Thresholds, where: str) -> None:
    structure, other = structure_of(expected, where), structure_of(got, where)
    if structure.count != other.count:
        verification.fail(f"{where}: {structure.count} tensors expected, {other.count} found")
        return
    names = list(structure.names("output"))
    found = dict(zip(other.names("output"), other.flatten(got), strict=True))
    missing = [name for name in names if name not in found]
    if missing:
        verification.fail(f"{where}: output '{missing[0]}' expected, none found")
        return
    errors = compare_tensors(where, names, list(structure.flatten(expected)), [found[name] for name in names])
    verification.tensors += errors
    for error in errors:
        if not error.relative_error <= thresholds.relative_error:
            text = f"{where}, output '{error.output}': {_error_text(error, thresholds)}"
            verification.fail(text, "picture", error.relative_error)


def _error_text(error: TensorError, thresholds: Thresholds) -> str:
    return (
        f"relative error {error.relative_error:.3g} (allowed {thresholds.relative_error:g}), cosine {error.cosine:.6f}"
    )


def add_tensor_failures(verification: Verification, errors: Sequence[TensorError], thresholds: Thresholds) -> None:
    """Notes the outputs of engines that are further off than allowed."""
    for error in errors:
        if not error.relative_error <= thresholds.relative_error:
            engine = f"'{error.engine}' on {error.backend}" if error.backend else f"'{error.engine}'"
            text = f"engine {engine}, output '{error.output}': {_error_text(error, thresholds)}"
            severity = error.relative_error if error.relative_error == error.relative_error else float("inf")
            verification.fail(text, "engine", severity)


def verify(
    detector: nn.Module,
    path: str | os.PathLike[str],
    inputs: Sequence[tuple[Any, ...]],
    *,
    precision: str = "fp32",
    thresholds: Thresholds | None = None,
    require_detections: bool = True,
    dataset: CocoDataset | None = None,
    max_map_drop: float = 0.005,
) -> Verification:
    """Runs detector and bundle on each of ``inputs`` and compares what they find.

    Args:
        detector: the detector, in eval mode.
        path: the bundle.
        inputs: tuples of the detector's positional arguments.
        precision: whose thresholds hold.
        thresholds: others than :data:`THRESHOLDS`.
        require_detections: fail if the detector finds nothing at all: two empty results prove nothing.
        dataset: annotated pictures; the mAP of both on them is part of the result.
        max_map_drop: by how much the hybrid's mAP (0..1) may be below the detector's.

    Returns:
        The comparison; ask ``passed``.

    Raises:
        OptionError: a data set that can't be used; the text says why.
    """
    truth = coco.read(dataset, max_map_drop) if dataset is not None else None
    hybrid = archive.load(path, emulate_precision=True)
    verification = compare_modules(
        detector,
        hybrid,
        inputs,
        precision=precision,
        thresholds=thresholds or thresholds_of(precision),
        require_detections=require_detections,
    )
    if truth is not None:
        compare_dataset(verification, detector, hybrid, truth, max_map_drop)
    return verification


def compare_modules(
    detector: nn.Module,
    hybrid: nn.Module,
    inputs: Sequence[tuple[Any, ...]],
    *,
    precision: str,
    thresholds: Thresholds,
    require_detections: bool = True,
    known: Sequence[Any] = (),
    watch: Callable[[tuple[Any, ...], Any, Any], None] | None = None,
) -> Verification:
    """:func:`verify` for a hybrid that is in memory.

    ``known``: what the detector found on the first inputs, if it has run on them. ``watch`` is called after each
    comparison: with the arguments, what the detector found, what the hybrid found.
    """
    verification = Verification(precision)
    with torch.no_grad():
        for i, arguments in enumerate(inputs):
            # Copies, as either may change its inputs.
            expected = known[i] if i < len(known) else detector(*map_tensors(arguments, Tensor.clone))
            found = hybrid(*map_tensors(arguments, Tensor.clone))
            compare_results(verification, expected, found, thresholds, f"input {i}")
            if watch is not None:
                watch(arguments, expected, found)
            if verification.sample is None or (_boxes_in(expected) and not _boxes_in(verification.sample[1])):
                verification.sample = (arguments, expected)
    if require_detections and verification.pictures and not any(match.expected for match in verification.pictures):
        verification.fail(
            "the detector found no box in any picture, so that nothing was compared: give pictures with objects, or "
            "verify=False"
        )
    return verification


def _boxes_in(result: Any) -> int:
    return sum(len(picture["boxes"]) for picture in detections_of(result) or [])


def compare_dataset(
    verification: Verification, detector: nn.Module, hybrid: nn.Module, truth: Truth, max_map_drop: float
) -> None:
    """Adds the mAP of both on annotated pictures, and a failure if the hybrid's is too far below.

    Raises:
        OptionError: what the detector returns does not fit the data set.
    """
    comparison = coco.compare(detector, hybrid, truth, max_map_drop)
    verification.dataset = comparison
    failure = comparison.failure
    if failure:
        verification.fail(failure)


def require(verification: Verification | None) -> None:
    """Raises VerificationError unless it passed: the worst segment and output, the worst picture, then the rest."""
    if verification is None or verification.passed:
        return
    worst = verification.worst()
    rest = [text for text in dict.fromkeys(verification.failures) if text not in worst]
    shown = [f"worst: {text}" for text in worst] if rest or len(worst) > 1 else worst
    shown += rest[:_SHOWN]
    if len(rest) > _SHOWN:
        shown.append(f"... and {len(rest) - _SHOWN} more")
    raise VerificationError.make(
        "verify",
        f"the hybrid in {verification.precision}",
        expected="what the detector finds",
        got="\n  " + "\n  ".join(shown) + "\n",
        remedy="Nothing was saved. Take precision='fp32', leave the segment out, or loosen thresholds= if it is meant.",
    )
