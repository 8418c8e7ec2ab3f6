"""What counts as equal, by precision."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ..common.errors import OptionError


@dataclass(frozen=True)
class Thresholds:
    """What counts as equal.

    Attributes:
        iou: least intersection over union of two boxes that are the same.
        score: greatest difference of their scores.
        recall: least share of boxes that have a partner, both ways, and of the partners' masks that agree.
        relative_error: greatest |difference| of an engine's output, relative to the output's greatest |value|.
        mask_iou: least intersection over union of two partners' masks, each cut at 0.5. Masks of which no more than
            two pixels differ agree in any case: at the edge of a small mask, rounding decides on them.
        keypoint_distance: greatest distance of two partners' keypoints, relative to the square root of the box's
            area. Two pixels are allowed in any case: a keypoint is the greatest cell of a heat map, which is flat
            around its top.
        keypoint_recall: least share of keypoints within that distance. It is not 1: where a heat map has two tops
            of nearly the same height, rounding decides between them, and the keypoint jumps from one to the other.
    """

    iou: float
    score: float
    recall: float
    relative_error: float
    mask_iou: float = 0.8
    keypoint_distance: float = 0.05
    keypoint_recall: float = 0.8


THRESHOLDS: Mapping[str, Thresholds] = {
    "fp32": Thresholds(
        iou=0.99,
        score=1e-3,
        recall=1.0,
        relative_error=1e-3,
        mask_iou=0.97,
        keypoint_distance=0.02,
        keypoint_recall=0.95,
    ),
    "bf16": Thresholds(
        iou=0.8,
        score=0.1,
        recall=0.9,
        relative_error=0.1,
        mask_iou=0.8,
        keypoint_distance=0.05,
        keypoint_recall=0.8,
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
        iou=0.7,
        score=0.2,
        recall=0.8,
        relative_error=0.3,
        mask_iou=0.7,
        keypoint_distance=0.1,
        keypoint_recall=0.7,
    ),
}
"""By precision. bf16 has 8 bits of mantissa: 2**-8 = 0.4 % a rounding, some tens of roundings deep; fp16 has 11. int8
counts 255 steps up to the largest value that was seen: the demo detector's features are 0.1 % off in fp16, 6 to 15 % in
int8. A data set's mAP (``dataset=``) is the better judge of int8."""


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
