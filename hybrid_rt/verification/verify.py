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
from .result import ENGINE, IMAGE, NOTHING, Failure, Findings, TensorError, Verification
from .self_noise import Rerun, equal_but_for_noise, reconciled, run_with_noise
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
"""Maximum number of failures that an error lists after the worst ones."""


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

    Elements that are NaN or the same infinity on both sides are equal.

    Args:
        engine: name of the engine.
        names: names of the outputs.
        expected: the segment's outputs.
        got: the engine's outputs.
        backend: backend of the engine's variant.
        rerun: runs the segment on its inputs with noise, see :mod:`.self_noise`. None: every output has to be equal.
        limit: error above which ``rerun`` is used, and whole numbers may differ only if it exceeds fp32's. Outputs that
            the segment itself does not repeat are left out.
    """

    def errors(tensors: Sequence[Tensor]) -> list[_native.OutputError]:
        triples = zip(names, expected, tensors, strict=True)
        return [_native.output_error(name, one, other, limit) for name, one, other in triples]

    found = errors(got)
    undetermined: frozenset[int] = frozenset()
    if rerun is not None and not all(error.relative_error <= limit for error in found):
        known = reconciled(expected, got, rerun, limit)
        undetermined = known.undetermined
        found = errors(known.found)
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
        expected: the detector's result.
        got: the hybrid's result.
        thresholds: limits for equality.
        where: prefix of each text, e.g. the image's name.
        rerun: runs the detector on its inputs with noise, see :mod:`.self_noise`. None: use only the rule that also
            applies on the target, as for the golden sample.

    Returns:
        The findings; ``compared`` is false if the detector itself does not repeat any part of its result.
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
            Failure(failure.text, "" if failure.severity is None else IMAGE, failure.severity or 0.0)
            for failure in found.failures
            if not (is_excused and failure.is_of_boxes)
        ],
        not_run=[f"{where}, output '{name}': {UNDETERMINED}" for name in undetermined],
        compared=not undetermined or len(undetermined) < len(found.outputs),
    )


def is_tighter(thresholds: Thresholds, usual: Thresholds) -> bool:
    """Returns true if thresholds are stricter than a precision's own, so that the detector's noise is no excuse."""
    return (
        thresholds.relative_error < usual.relative_error
        or thresholds.iou > usual.iou
        or thresholds.score < usual.score
        or thresholds.recall > usual.recall
    )


_NOTHING_THERE = torch.empty(0)

UNDETERMINED = "the detector itself returns something else on the same input with noise of 1e-6"
"""Reason why an output was not compared."""


def _in_the_detectors_order(expected: Any, got: Any, rerun: Rerun, limit: float) -> tuple[Any, list[str]]:
    """Returns the hybrid's result with its rows reordered by :func:`reconciled`, and the undetermined outputs."""
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
    """Returns a failure for each output of an engine whose error exceeds the limit."""
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
    """Does the same as :func:`verify` for a hybrid in memory.

    ``known`` holds the detector's results on the first inputs, if it has already run on them. ``watch`` is called after
    each comparison with the arguments, the detector's result and the hybrid's result.
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
        ran: true if it has been called.
    """

    def __init__(self, detector: nn.Module, arguments: tuple[Any, ...], expected: Any) -> None:
        """``expected``: the detector's result for ``arguments``."""
        self.ran = False
        self._detector = detector
        self._arguments = arguments
        self._expected = opened(expected)

    def __call__(self, seed: int) -> Any:
        """Returns the result with the noise of a seed."""
        self.ran = True
        return opened(run_with_noise(self._detector, self._arguments, seed))

    def repeats(self) -> bool:
        """Returns true if the detector repeats its result without noise, which one with random numbers does not."""
        again = self._plain()
        # Observing the first run may have made torch choose other kernels, so compare two unobserved runs as well.
        return same_results(self._expected, again) or same_results(again, self._plain())

    def _plain(self) -> Any:
        return opened(self._detector(*map_tensors(self._arguments, Tensor.clone)))


def other_precision(precision: str) -> str:
    """Returns the beginning of a remedy: a higher precision, if there is one, and the verb that follows."""
    return "Exclude" if precision == "fp32" else "Use precision='fp32', exclude"


def require(verification: Verification | None) -> None:
    """Checks that a verification passed.

    Raises:
        VerificationError: It failed; the text lists the worst output, the worst image, and then the rest.
    """
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
