"""Compares the hybrid with the detector: each engine's outputs, then the boxes, then a dataset's mAP."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .. import _native
from ..bundle import archive
from ..capture.detector_errors import NamingTheLine
from ..capture.state import same_results
from ..common.errors import VerificationError
from ..common.tensor_tree import map_places, map_tensors, plain
from ..common.value_tree import opened
from . import coco
from .boxes import BoxMatch, box_iou, detections_of, match_boxes
from .coco import CocoDataset
from .plain_values import comparable, tensors_by_place
from .result import ENGINE, NOTHING, PICTURE, Failure, Findings, TensorError, Verification
from .self_noise import Rerun, equal_but_for_noise, reconciled, with_noise
from .thresholds import THRESHOLDS, Thresholds, thresholds_of

__all__ = [
    "THRESHOLDS",
    "BoxMatch",
    "Failure",
    "Findings",
    "TensorError",
    "Thresholds",
    "Verification",
    "box_iou",
    "compare_modules",
    "compare_results",
    "compare_tensors",
    "detections_of",
    "match_boxes",
    "require",
    "tensor_failures",
    "thresholds_of",
    "verify",
]

_SHOWN = 20
"""Failures that an error shows after the worst ones."""


def compare_tensors(
    engine: str,
    names: Sequence[str],
    expected: Sequence[Tensor],
    got: Sequence[Tensor],
    backend: str = "",
    rerun: Callable[[int], Sequence[Tensor]] | None = None,
    limit: float = THRESHOLDS["fp32"].relative_error,
) -> list[TensorError]:
    """Returns relative error and cosine of each output; a shape or dtype that differs counts as infinitely wrong.

    Elements that are the same infinity on both sides, or NaN, are equal.

    Args:
        engine: its name.
        names: of the outputs.
        expected: the segment's outputs.
        got: the engine's.
        backend: of the engine's variant.
        rerun: runs the segment on its inputs with noise, see :mod:`.self_noise`. None: every output has to be equal.
        limit: above this error ``rerun`` is asked. Outputs that the segment itself does not repeat are left out.
    """
    found = [_native.output_error(name, *pair) for name, *pair in zip(names, expected, got, strict=True)]
    undetermined: frozenset[int] = frozenset()
    if rerun is not None and not all(error.relative_error <= limit for error in found):
        known = reconciled(expected, got, rerun, limit)
        undetermined = known.undetermined
        found = [_native.output_error(name, *pair) for name, *pair in zip(names, expected, known.found, strict=True)]
    return [
        TensorError(engine, error.output, error.relative_error, error.cosine, backend)
        for i, error in enumerate(found)
        if i not in undetermined
    ]


def compare_results(
    expected: Any,
    got: Any,
    thresholds: Thresholds,
    where: str,
    rerun: Rerun | None = None,
) -> Findings:
    """Compares one call's results: boxes if they are detections, else every tensor.

    Args:
        expected: what the detector returned.
        got: what the hybrid returned.
        thresholds: what counts as equal.
        where: begins each text.
        rerun: runs the detector on its inputs with noise, see :mod:`.self_noise`. None: by the rule of the target
            alone, as the golden sample is compared.

    Returns:
        What was found, also that nothing was compared, because the detector itself repeats nothing of its result.
    """
    expected, got = opened(expected), opened(got)
    are_detections = detections_of(expected) is not None and detections_of(got) is not None
    native = thresholds.to_native()
    found = _native.compare_results(plain(expected), plain(got), native, where)
    undetermined: list[str] = []
    is_excused = False
    if found.failures and rerun is not None:
        if are_detections:
            is_excused = equal_but_for_noise(expected, got, rerun, thresholds, where)
        else:
            got, undetermined = _in_the_detectors_order(expected, got, rerun, thresholds.relative_error)
            found = _native.compare_results(plain(expected), plain(got), native, where)
    return Findings(
        tensors=[
            TensorError(where, error.output, error.relative_error, error.cosine)
            for error in found.outputs
            if error.output not in undetermined
        ],
        pictures=[BoxMatch.from_native(match) for match in found.pictures],
        failures=[
            Failure(failure.text, "" if failure.severity is None else PICTURE, failure.severity or 0.0)
            for failure in (() if is_excused else found.failures)
        ],
        not_run=[f"{where}, output '{name}': {UNDETERMINED}" for name in undetermined],
        compared=not undetermined or len(undetermined) < len(found.outputs),
    )


def is_tighter(thresholds: Thresholds, usual: Thresholds) -> bool:
    """Returns whether they ask for more than a precision's own: then the detector's own noise excuses nothing."""
    return (
        thresholds.relative_error < usual.relative_error
        or thresholds.iou > usual.iou
        or thresholds.score < usual.score
        or thresholds.recall > usual.recall
    )


_NOTHING_THERE = torch.empty(0)

UNDETERMINED = "the detector itself returns something else on the same input with noise of 1e-6"
"""Why an output was not compared."""


def _in_the_detectors_order(expected: Any, got: Any, rerun: Rerun, limit: float) -> tuple[Any, list[str]]:
    """Returns what the hybrid found with its rows reordered by :func:`reconciled`, and the undetermined outputs."""
    wanted, had = tensors_by_place(expected), tensors_by_place(got)
    if set(wanted) != set(had):
        return got, []

    def again(seed: int) -> list[Tensor]:
        noisy = tensors_by_place(rerun(seed))
        return [noisy.get(place, _NOTHING_THERE) for place in wanted]

    known = reconciled(list(wanted.values()), [had[place] for place in wanted], again, limit)
    in_order = dict(zip(wanted, known.found, strict=True))
    names = [".".join(("output", *map(str, place))) for place in wanted]
    return map_places(got, lambda place, _: in_order[place]), [names[i] for i in sorted(known.undetermined)]


def tensor_failures(errors: Sequence[TensorError], thresholds: Thresholds) -> list[Failure]:
    """Returns a failure for each output of an engine that is further off than allowed."""
    failures = []
    for error in errors:
        if not error.relative_error <= thresholds.relative_error:
            engine = f"'{error.engine}' on {error.backend}" if error.backend else f"'{error.engine}'"
            native = _native.OutputError(error.output, error.relative_error, error.cosine)
            text = f"engine {engine}, output '{error.output}': {_native.error_text(native, thresholds.to_native())}"
            severity = error.relative_error if error.relative_error == error.relative_error else float("inf")
            failures.append(Failure(text, ENGINE, severity))
    return failures


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
    """Runs detector and bundle on each of ``inputs`` and compares the results.

    Args:
        detector: the detector, in eval mode.
        path: path of the bundle.
        inputs: tuples of the detector's positional arguments.
        precision: selects the thresholds.
        thresholds: thresholds to use instead of :data:`THRESHOLDS`.
        require_detections: fail if the detector finds no object at all, because two empty results prove nothing.
        dataset: annotated images; the result then includes the mAP of both.
        max_map_drop: largest allowed drop of the mAP, in 0..1.

    Returns:
        The comparison; its ``passed`` is true if nothing differs.

    Raises:
        OptionError: the dataset can't be used; the text says why.
        BundleError: the bundle can't be read, see :func:`hybrid_rt.load`.
        BackendError: no variant of an engine can run here.

    Examples:
        >>> verification = hybrid_rt.verify(detector, "detector.pt", [([image],)])
        >>> verification.passed
        True
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
    if truth is None:
        return verification
    return verification.with_dataset(coco.compare(detector, hybrid, truth, max_map_drop))


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
    findings: list[Findings] = []
    with torch.no_grad():
        for i, arguments in enumerate(inputs):
            # Copies, as either may change its inputs.
            with NamingTheLine(detector, arguments, f"input {i}"):
                expected = known[i] if i < len(known) else detector(*map_tensors(arguments, Tensor.clone))
            found = hybrid(*map_tensors(arguments, Tensor.clone))
            where = f"input {i}"
            wanted = comparable(expected)

            rerun = _Rerun(detector, arguments, wanted)
            noise = None if is_tighter(thresholds, thresholds_of(precision)) else rerun
            finding = compare_results(wanted, found, thresholds, where, noise)
            if rerun.ran and not finding.failures and not rerun.repeats():
                finding = compare_results(wanted, found, thresholds, where)  # it was not rounding that made it differ
            findings.append(finding)
            if watch is not None:
                watch(arguments, wanted, opened(found))
    verification = Verification(precision).with_findings(*findings)
    failures = []
    if require_detections and verification.pictures and not any(match.expected for match in verification.pictures):
        failures.append(
            "the detector found no box in any image, so nothing was compared: pass images with objects, or verify=False"
        )
    if findings and not any(found.compared for found in findings):
        failures.append(
            f"{UNDETERMINED}, for every input, so nothing was compared: pass verify_inputs= on which "
            "it repeats its result, or verify=False"
        )
    return verification.with_findings(Findings(failures=[Failure(text, NOTHING) for text in failures]))


class _Rerun:
    """Runs a detector again on one input.

    Attributes:
        ran: whether it was asked for.
    """

    def __init__(self, detector: nn.Module, arguments: tuple[Any, ...], expected: Any) -> None:
        """``expected``: what the detector returned for ``arguments``."""
        self.ran = False
        self._detector = detector
        self._arguments = arguments
        self._expected = opened(expected)

    def __call__(self, seed: int) -> Any:
        """Returns the result with the noise of a seed."""
        self.ran = True
        return opened(self._detector(*with_noise(self._arguments, seed)))

    def repeats(self) -> bool:
        """Returns true if the detector finds the same without noise: one that draws random numbers does not."""
        again = self._plain()
        # The first run may have been watched, which makes torch take other kernels: two that were not decide.
        return same_results(self._expected, again) or same_results(again, self._plain())

    def _plain(self) -> Any:
        return opened(self._detector(*map_tensors(self._arguments, Tensor.clone)))


def other_precision(precision: str) -> str:
    """Returns the beginning of a remedy: a higher precision, if there is one, and the verb that follows."""
    return "Exclude" if precision == "fp32" else "Use precision='fp32', exclude"


def require(verification: Verification | None) -> None:
    """Raises VerificationError unless it passed: the worst segment and output, the worst image, then the rest."""
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
        expected="the detector's results",
        got="\n  " + "\n  ".join(shown) + "\n",
        remedy="Nothing was saved."
        if verification.found_nothing
        else f"Nothing was saved. {other_precision(verification.precision)} the segment, or loosen thresholds= if the "
        "difference is acceptable.",
        code="outputs-differ"
        if verification.engines_failed
        else "nothing-compared"
        if verification.found_nothing
        else "results-differ",
    )
