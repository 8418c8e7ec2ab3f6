"""The result of a comparison: differences, failures, and comparisons that were not possible."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from .boxes import BoxMatch
from .coco import DatasetComparison

ENGINE, IMAGE, NOTHING = "engine", "image", "nothing"
"""Kinds of failures: an engine's output, the boxes of an image, nothing that could be compared."""


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


@dataclass(frozen=True)
class Failure:
    """A difference beyond the limits; an error shows the most severe one of each ``kind`` first."""

    text: str
    kind: str = ""
    severity: float = 0.0


@dataclass(frozen=True)
class Findings:
    """The outcome of one comparison, for :meth:`Verification.with_findings`.

    Attributes:
        tensors: differences of outputs other than boxes.
        pictures: comparison of the boxes of each image.
        failures: differences beyond the limits.
        not_run: comparisons that were not possible, with the reason.
        compared: false if nothing could be compared, because the detector itself does not repeat any of its results.
    """

    tensors: Sequence[TensorError] = ()
    pictures: Sequence[BoxMatch] = ()
    failures: Sequence[Failure] = ()
    not_run: Sequence[str] = ()
    compared: bool = True


@dataclass(frozen=True)
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
    _noted: Sequence[Failure] = field(default=(), repr=False, compare=False)

    @property
    def passed(self) -> bool:
        """Returns true if nothing failed."""
        return not self.failures

    @property
    def engines_failed(self) -> bool:
        """Returns true if an engine's own outputs differ, so that no other head would help."""
        return any(failure.kind == ENGINE for failure in self._noted)

    @property
    def found_nothing(self) -> bool:
        """Returns true if the only failure is that nothing could be compared."""
        return set(self.failures) == {failure.text for failure in self._noted if failure.kind == NOTHING}

    def worst(self) -> list[str]:
        """Returns the texts of the worst failed output of an engine and of the worst failed image."""
        found = []
        for kind in (ENGINE, IMAGE):
            failures = [failure for failure in self._noted if failure.kind == kind]
            if failures:
                found.append(max(failures, key=lambda failure: failure.severity).text)
        return found

    def with_findings(self, *findings: Findings) -> Verification:
        """Returns this verification together with further findings.

        Args:
            findings: the outcome of each comparison.
        """
        noted = [failure for found in findings for failure in found.failures]
        return replace(
            self,
            tensors=[*self.tensors, *(error for found in findings for error in found.tensors)],
            pictures=[*self.pictures, *(match for found in findings for match in found.pictures)],
            failures=[*self.failures, *(failure.text for failure in noted)],
            not_run=[*self.not_run, *(reason for found in findings for reason in found.not_run)],
            _noted=[*self._noted, *noted],
        )

    def with_dataset(self, comparison: DatasetComparison) -> Verification:
        """Returns this verification with the mAP of both, and with a failure if the hybrid's is too low.

        Args:
            comparison: the mAP of both.
        """
        failures = [Failure(comparison.failure)] if comparison.failure else []
        return replace(self, dataset=comparison).with_findings(Findings(failures=failures))

    def to_json(self) -> dict[str, Any]:
        """Returns the fields as JSON values, as in the manifest and the report."""
        values = asdict(self)
        del values["_noted"]
        return values

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Verification:
        """Returns the verification that is stored in a manifest; fields that an older file lacks get their defaults.

        The box drift is NaN if it was not measured, because no default would be right.

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
    """Returns the values that are fields of the record; a newer file may have more."""
    names = {known.name for known in fields(record)}
    return {name: value for name, value in values.items() if name in names}
