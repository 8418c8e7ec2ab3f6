"""Thresholds for equality, by precision.

To add a threshold, change four files: this one (the field, and its value for each precision),
cpp/include/hybrid_rt/thresholds.h (the field and its line in the table), cpp/src/verify/boxes.cpp (the rule that uses
it) and the table in docs/precision-and-verification.md. The golden sample, the report, its schema and the bindings
iterate over the fields, and tests compare the two languages and the page.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from .. import _native
from ..common.errors import OptionError


@dataclass(frozen=True)
class Thresholds:
    """Thresholds for equality.

    The first four are required. The others default to those of fp32, the strictest. To start from another precision's,
    use :meth:`of`.

    Attributes:
        iou: lowest intersection over union of two matching boxes.
        score: largest difference of their scores.
        recall: smallest fraction of boxes that have a partner, both ways, and of the partners' masks that agree.
        relative_error: largest |difference| of an engine's output, relative to the output's largest |value|.
        mask_iou: lowest intersection over union of two partners' masks, each cut at 0.5. Masks that differ in at most
            two pixels always agree, because rounding decides on pixels at the edge of a small mask.
        keypoint_distance: largest distance of two partners' keypoints, relative to the square root of the box's area.
            Two pixels are always allowed, because a keypoint is the largest cell of a heat map that is flat around its
            maximum.
        keypoint_recall: smallest fraction of keypoints within that distance. It is below 1, because if a heat map has
            two maxima of nearly the same height, rounding decides which one the keypoint is at.
    """

    iou: float
    score: float
    recall: float
    relative_error: float
    mask_iou: float = 0.97
    keypoint_distance: float = 0.02
    keypoint_recall: float = 0.95

    @classmethod
    def of(cls, precision: str, **changes: float) -> Thresholds:
        """Returns a precision's thresholds with some of them changed.

        Args:
            precision: "fp32", "bf16", "fp16" or "int8".
            changes: new values by field, e.g. ``Thresholds.of("bf16", iou=0.9)``.

        Returns:
            The thresholds.

        Raises:
            OptionError: the precision has no thresholds, or a name is not a field.
        """
        unknown = [name for name in changes if name not in {field.name for field in fields(cls)}]
        if unknown:
            raise OptionError.make(
                "verify",
                "thresholds",
                expected=f"some of {', '.join(field.name for field in fields(cls))}",
                got=f"'{unknown[0]}'",
            )
        return replace(thresholds_of(precision), **changes)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Thresholds:
        """Returns the thresholds that are stored in a bundle.

        Args:
            values: the JSON values.

        Raises:
            KeyError: A field is missing.
        """
        return cls(**{field.name: float(values[field.name]) for field in fields(cls)})

    def to_json(self) -> dict[str, float]:
        """Returns every field by its name."""
        return asdict(self)

    def to_native(self) -> _native.Thresholds:
        """Returns the thresholds as the native object."""
        native = _native.Thresholds()
        for name, value in asdict(self).items():
            setattr(native, name, value)
        return native


THRESHOLDS: Mapping[str, Thresholds] = {
    "fp32": Thresholds(iou=0.99, score=1e-3, recall=1.0, relative_error=1e-3),
    "bf16": Thresholds(
        iou=0.8, score=0.1, recall=0.9, relative_error=0.1, mask_iou=0.8, keypoint_distance=0.05, keypoint_recall=0.8
    ),
    "fp16": Thresholds(
        iou=0.95,
        score=0.02,
        recall=0.95,
        relative_error=0.02,
        mask_iou=0.9,
        keypoint_distance=0.03,
        keypoint_recall=0.9,
    ),
    "int8": Thresholds(
        iou=0.7, score=0.2, recall=0.8, relative_error=0.3, mask_iou=0.7, keypoint_distance=0.1, keypoint_recall=0.7
    ),
}
"""The thresholds by precision. ``relative_error`` follows from the format; the others allow its effect on boxes.

- fp32 has 24 bits of mantissa: 2**-24 = 6e-8 per rounding. Engines that compute the same in another order were 1e-6 to
  1e-5 off; 1e-3 leaves room for deeper detectors, and still finds a wrong layer.
- bf16 has 8 bits: 2**-8 = 0.4 % per rounding, some tens of roundings deep.
- fp16 has 11 bits: 2**-11 = 0.05 % per rounding, eight times finer than bf16.
- int8 counts 255 steps up to the largest value that was seen while calibrating: the demo detector's features are 6 to
  15 % off, against 0.1 % in fp16. The compilers of CPUs keep layers in fp32 until outputs are at most 15 % off on
  calibration samples; the gate allows twice that, since it looks at other inputs and sizes. The mAP on a dataset
  (``dataset=``) is the better judge of int8.
"""


def thresholds_of(precision: str) -> Thresholds:
    """Returns the thresholds of a precision.

    Raises:
        OptionError: The precision has no thresholds.
    """
    if precision not in THRESHOLDS:
        raise OptionError.make(
            "verify",
            "thresholds",
            expected=f"a precision with default thresholds ({', '.join(THRESHOLDS)})",
            got=f"'{precision}'",
            remedy="Pass thresholds=Thresholds(...).",
        )
    return THRESHOLDS[precision]
