"""Detections of one image, the detector's against the hybrid's.

The rule of which boxes are the same, and what is said of those that are not, stands in cpp/src/verify/boxes.cpp; here
are its records and its calls.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from torch import Tensor

from .. import _native
from ..common.tensor_tree import plain
from .thresholds import THRESHOLDS, Thresholds

_FP32 = THRESHOLDS["fp32"]

_ANY_SCORE = 1.0
"""Scores are in 0..1: no two of them differ by more."""


@dataclass(frozen=True)
class BoxMatch:
    """Boxes of one image, detector against hybrid, matched by label and IoU, best scores first.

    A box is at the cut if it has no partner, its score is below one half, and level with the other side's lowest one:
    there the detector's own threshold, or its limit of boxes, cuts, and rounding decides which side of it the box is
    on. Such boxes are counted, but not as lost.

    Attributes:
        expected: how many boxes the detector found.
        found: how many the hybrid found.
        matched: how many pairs they make.
        min_iou: the least IoU of a pair; of boxes thinner than a pixel how near their edges are, 1 if they are equal.
        max_score_difference: the greatest difference of a pair's scores.
        expected_at_cut: boxes of the detector at the cut.
        found_at_cut: boxes of the hybrid at the cut.
        max_box_drift: the greatest distance between the same corner of a pair's boxes, in pixels.
        masks: pairs that have masks.
        masks_differ: those whose masks do not agree.
        min_mask_iou: the least IoU of a pair's masks; None without masks.
        keypoints: keypoints of all pairs.
        keypoints_differ: those that are further off than allowed.
        max_keypoint_distance: the greatest distance of two keypoints, in pixels; None without keypoints.
        max_keypoint_score_difference: of "keypoints_scores"; None without. Reported, not judged: its scale is the
            heat map's.
        where: which image.
        lost: the best box that has no partner and is not at the cut; empty if there is none.
    """

    expected: int
    found: int
    matched: int
    min_iou: float
    max_score_difference: float
    expected_at_cut: int = 0
    found_at_cut: int = 0
    max_box_drift: float = 0.0
    masks: int = 0
    masks_differ: int = 0
    min_mask_iou: float | None = None
    keypoints: int = 0
    keypoints_differ: int = 0
    max_keypoint_distance: float | None = None
    max_keypoint_score_difference: float | None = None
    where: str = ""
    lost: str = ""

    @classmethod
    def from_native(cls, match: _native.BoxMatch) -> BoxMatch:
        """Returns the record of what the comparison in C++ gave."""
        return cls(**{field.name: getattr(match, field.name) for field in fields(cls)})

    def to_native(self) -> _native.BoxMatch:
        """Returns the match as C++ takes it."""
        native = _native.BoxMatch()
        for name, value in asdict(self).items():
            setattr(native, name, value)
        return native

    @property
    def at_cut(self) -> int:
        """Boxes at the cut, of both sides."""
        return self.expected_at_cut + self.found_at_cut

    @property
    def recall_of_expected(self) -> float:
        """Fraction of the detector's boxes that the hybrid finds again, or that are at the cut; 1 if there are none."""
        return self.to_native().recall_of_expected()

    @property
    def recall_of_found(self) -> float:
        """Fraction of the hybrid's boxes that the detector finds too (or that are at the cut); 1 if there are none."""
        return self.to_native().recall_of_found()

    @property
    def recall(self) -> float:
        """The lower one of both ways."""
        return self.to_native().recall()

    @property
    def masks_recall(self) -> float:
        """Fraction of the pairs' masks that agree; 1 if there are none."""
        return self.to_native().masks_recall()

    @property
    def keypoint_recall(self) -> float:
        """Fraction of the pairs' keypoints that are near enough; 1 if there are none."""
        return self.to_native().keypoint_recall()


def match_boxes(
    expected: Mapping[str, Tensor],
    found: Mapping[str, Tensor],
    *,
    iou: float = _FP32.iou,
    score: float = _ANY_SCORE,
    mask_iou: float = _FP32.mask_iou,
    keypoint_distance: float = _FP32.keypoint_distance,
) -> BoxMatch:
    """Matches two sets of detections one to one: equal label, IoU at least ``iou``, scores within ``score``.

    Masks and keypoints are compared for the pairs, where both sides have them.

    Args:
        expected: boxes [n, 4] as (x1, y1, x2, y2), labels [n], scores [n]; best first. If there are any: masks
            [n, 1, H, W] in 0..1 (or 0 and 1), keypoints [n, K, 3] as (x, y, visible), keypoints_scores [n, K].
        found: the same, [m, ...].
        iou: least IoU of a pair; fp32's unless given.
        score: greatest difference of their scores; any unless given.
        mask_iou: see :class:`Thresholds`; fp32's unless given.
        keypoint_distance: see :class:`Thresholds`; fp32's unless given.

    Raises:
        InputError: not detections.
    """
    limits = replace(_FP32, iou=iou, score=score, mask_iou=mask_iou, keypoint_distance=keypoint_distance)
    return compare_detections(expected, found, limits, "")


def compare_detections(
    expected: Mapping[str, Tensor], found: Mapping[str, Tensor], thresholds: Thresholds, where: str
) -> BoxMatch:
    """Returns :func:`match_boxes` by the thresholds; ``where`` names the image."""
    match = _native.match_boxes(plain(expected), plain(found), thresholds.to_native())
    return replace(BoxMatch.from_native(match), where=where)


def matching_boxes(
    expected: Mapping[str, Tensor], found: Mapping[str, Tensor], thresholds: Thresholds
) -> list[tuple[int, int]]:
    """Returns the indices of the (expected, found) boxes that make a pair by the same rule."""
    return _native.matching_boxes(plain(expected), plain(found), thresholds.to_native())


def box_iou(first: Tensor, second: Tensor) -> Tensor:
    """Returns the intersection over union of boxes [n, 4] and [m, 4], (x1, y1, x2, y2), as [n, m].

    Equal boxes have 1, empty or not.
    """
    return _native.box_iou(first, second)


def detections_of(value: Any) -> list[Mapping[str, Tensor]] | None:
    """Returns the value if it is a list of detections (dicts with boxes [n, 4], labels [n], scores [n]), else None."""
    return list(value) if isinstance(value, (list, tuple)) and _native.are_detections(plain(value)) else None


def differences(match: BoxMatch, thresholds: Thresholds) -> list[str]:
    """Says what in an image differs by more than the thresholds allow; empty if it passes."""
    return _native.differences(match.to_native(), thresholds.to_native())
