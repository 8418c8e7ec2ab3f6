"""Compares the hybrid with the detector: each engine's outputs, then the boxes, then a dataset's mAP."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import torch
from torch import Tensor, nn

from .. import _native
from ..bundle import archive
from ..common.errors import VerificationError
from ..common.tensor_tree import map_places, map_tensors, plain
from ..common.value_tree import opened
from . import coco
from .boxes import BoxMatch, box_iou, detections_of, match_boxes
from .coco import CocoDataset, DatasetComparison, Truth
from .plain_values import comparable, tensors_by_place
from .self_noise import Rerun, equal_but_for_noise, reconciled, with_noise
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

_NOTHING = "nothing"
"""The kind of a failure that says that nothing was compared."""


@dataclass(frozen=True)
class TensorError:
    """Difference of one output of an engine from the detector's.

    Attributes:
        engine: name of the engine.
        output: name of the output.
        relative_error: greatest |difference|, relative to the greatest |value|; infinite for another shape or dtype.
        cosine: cosine of the angle between both, flattened: 1 if they are equal up to a factor.
        backend: backend of the variant.
    """

    engine: str
    output: str
    relative_error: float
    cosine: float
    backend: str = ""


@dataclass
class Verification:
    """Result of a comparison of detector and hybrid.

    Attributes:
        precision: precision whose thresholds were used.
        tensors: differences of the engines' outputs.
        pictures: comparison of the boxes of each image.
        failures: differences beyond the thresholds, for messages; empty if the hybrid passed.
        not_run: what was not compared, with the reason: variants that can't run on this machine, and outputs that the
            detector itself does not repeat on inputs with noise of a rounding's size.
        dataset: mAP of both on the annotated dataset; None if none was given.
    """

    precision: str
    tensors: list[TensorError] = field(default_factory=list)
    pictures: list[BoxMatch] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    not_run: list[str] = field(default_factory=list)
    dataset: DatasetComparison | None = None

    def __post_init__(self) -> None:
        """Computes values that are not part of the record."""
        self._severities: dict[str, tuple[str, float]] = {}

    @property
    def passed(self) -> bool:
        """Returns true if nothing failed."""
        return not self.failures

    @property
    def engines_failed(self) -> bool:
        """Returns true if an engine's own outputs differ, so that no other head would help."""
        return any(kind == "engine" for kind, _ in self._severities.values())

    @property
    def found_nothing(self) -> bool:
        """Returns true if the only failure is that nothing could be compared."""
        return set(self.failures) == {text for text, (kind, _) in self._severities.items() if kind == _NOTHING}

    def fail(self, text: str, kind: str = "", severity: float = 0.0) -> None:
        """Adds a failure.

        Args:
            text: the failure, for messages.
            kind: "engine" or "picture"; the error shows the severest failure of each kind first.
            severity: a number that orders the failures of one kind.
        """
        self.failures.append(text)
        if kind:
            known = self._severities.get(text)
            self._severities[text] = (kind, max(severity, known[1]) if known else severity)

    def worst(self) -> list[str]:
        """Returns the texts of the worst output of an engine and of the worst image, of those that failed."""
        found = []
        for wanted in ("engine", "picture"):
            texts = [text for text, (kind, _) in self._severities.items() if kind == wanted]
            if texts:
                found.append(max(texts, key=lambda text: self._severities[text][1]))
        return found

    def skip(self, reasons: Iterable[str]) -> None:
        """Adds what was not compared.

        Args:
            reasons: one text each.
        """
        self.not_run += reasons

    def to_json(self) -> dict[str, Any]:
        """Returns the fields as JSON values, as in the manifest and the report."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Verification:
        """Returns the verification that a manifest holds; fields that an older file lacks have their defaults.

        The box drift has no default that would be true: it is NaN where it was not measured.

        Args:
            values: the JSON values.
        """
        dataset = values.get("dataset")
        return cls(
            precision=values["precision"],
            tensors=[TensorError(**_known(TensorError, error)) for error in values["tensors"]],
            pictures=[
                BoxMatch(**{"max_box_drift": math.nan, **_known(BoxMatch, match)}) for match in values["pictures"]
            ],
            failures=list(values.get("failures", [])),
            not_run=list(values.get("not_run", [])),
            dataset=DatasetComparison.from_json(dataset) if dataset else None,
        )


def _known(record: Any, values: Mapping[str, Any]) -> dict[str, Any]:
    """The values that the record has fields for: a newer file may hold more."""
    names = {known.name for known in fields(record)}
    return {name: value for name, value in values.items() if name in names}


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

    Where both sides have the same infinity, or NaN, they are equal.

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
    verification: Verification,
    expected: Any,
    got: Any,
    thresholds: Thresholds,
    where: str,
    rerun: Rerun | None = None,
) -> bool:
    """Adds the comparison of one call's results: boxes if they are detections, else every tensor.

    Args:
        verification: takes what is found.
        expected: what the detector returned.
        got: what the hybrid returned.
        thresholds: what counts as equal.
        where: begins each text.
        rerun: runs the detector on its inputs with noise, see :mod:`.self_noise`. None: by the rule of the target
            alone, as the golden sample is compared.

    Returns:
        Whether anything was compared: not so if the detector itself repeats nothing of its result.
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
    verification.pictures += map(BoxMatch.from_native, found.pictures)
    verification.tensors += (
        TensorError(where, error.output, error.relative_error, error.cosine)
        for error in found.outputs
        if error.output not in undetermined
    )
    verification.skip(f"{where}, output '{name}': {UNDETERMINED}" for name in undetermined)
    for failure in found.failures if not is_excused else ():
        verification.fail(failure.text, "" if failure.severity is None else "picture", failure.severity or 0.0)
    return not undetermined or len(undetermined) < len(found.outputs)


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


def add_tensor_failures(verification: Verification, errors: Sequence[TensorError], thresholds: Thresholds) -> None:
    """Notes the outputs of engines that are further off than allowed."""
    for error in errors:
        if not error.relative_error <= thresholds.relative_error:
            engine = f"'{error.engine}' on {error.backend}" if error.backend else f"'{error.engine}'"
            native = _native.OutputError(error.output, error.relative_error, error.cosine)
            text = f"engine {engine}, output '{error.output}': {_native.error_text(native, thresholds.to_native())}"
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
    compared: list[bool] = []
    with torch.no_grad():
        for i, arguments in enumerate(inputs):
            # Copies, as either may change its inputs.
            expected = known[i] if i < len(known) else detector(*map_tensors(arguments, Tensor.clone))
            found = hybrid(*map_tensors(arguments, Tensor.clone))
            where = f"input {i}"
            wanted = comparable(expected)

            def rerun(seed: int, arguments: tuple[Any, ...] = arguments) -> Any:
                return opened(detector(*with_noise(arguments, seed)))

            noise = None if is_tighter(thresholds, thresholds_of(precision)) else rerun
            compared.append(compare_results(verification, wanted, found, thresholds, where, noise))
            if watch is not None:
                watch(arguments, wanted, opened(found))
    if require_detections and verification.pictures and not any(match.expected for match in verification.pictures):
        verification.fail(
            "the detector found no box in any picture, so that nothing was compared: pass images with objects, or "
            "verify=False",
            _NOTHING,
        )
    if compared and not any(compared):
        verification.fail(
            f"{UNDETERMINED}, for every input, so that nothing was compared: give verify_inputs= on which "
            "it repeats its result, or verify=False",
            _NOTHING,
        )
    return verification


def compare_dataset(
    verification: Verification, detector: nn.Module, hybrid: nn.Module, truth: Truth, max_map_drop: float
) -> None:
    """Adds the mAP of both on annotated pictures, and a failure if the hybrid's is too far below.

    Raises:
        OptionError: what the detector returns does not fit the dataset.
    """
    comparison = coco.compare(detector, hybrid, truth, max_map_drop)
    verification.dataset = comparison
    failure = comparison.failure
    if failure:
        verification.fail(failure)


def other_precision(precision: str) -> str:
    """Returns the beginning of a remedy: a higher precision, if there is one, and the verb that follows."""
    return "Exclude" if precision == "fp32" else "Use precision='fp32', exclude"


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
