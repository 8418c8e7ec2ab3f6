"""Compares the detections of one image, the detector's with the hybrid's.

cpp/src/verify/boxes.cpp implements the rule by which boxes match and the texts about those that do not. This module has
the Python records and calls.
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
"""Largest possible difference of two scores, which are in 0..1."""


@dataclass(frozen=True)
class BoxMatch:
    """Boxes of one image, detector against hybrid, matched by label and IoU, best scores first.

    A box is at the cut if it has no partner, and its score is below one half and about equal to the other side's lowest
    score. There the detector's own threshold, or its limit of boxes, removes boxes, and rounding decides which ones.
    Such boxes are counted separately, not as lost.

    Attributes:
        expected: number of the detector's boxes.
        found: number of the hybrid's boxes.
        matched: number of pairs.
        min_iou: lowest IoU of a pair; for boxes thinner than a pixel, the closeness of their edges (1 if equal).
        max_score_difference: largest difference of a pair's scores.
        expected_at_cut: number of the detector's boxes at the cut.
        found_at_cut: number of the hybrid's boxes at the cut.
        max_box_drift: largest distance between the same corner of a pair's boxes, in pixels.
        masks: number of pairs that have masks.
        masks_differ: number of pairs whose masks do not agree.
        min_mask_iou: lowest IoU of a pair's masks; None without masks.
        keypoints: number of keypoints of all pairs.
        keypoints_differ: number of keypoints beyond the allowed distance.
        max_keypoint_distance: largest distance of two keypoints, in pixels; None without keypoints.
        max_keypoint_score_difference: largest difference of "keypoints_scores"; None without them. Reported, not
            judged, because its scale is the heat map's.
        where: the image, for messages.
        lost: description of the best box that has no partner and is not at the cut; empty if there is none.
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
        """Returns the record of a comparison in C++."""
        return cls(**{field.name: getattr(match, field.name) for field in fields(cls)})

    def to_native(self) -> _native.BoxMatch:
        """Returns the match as the native object."""
        native = _native.BoxMatch()
        for name, value in asdict(self).items():
            setattr(native, name, value)
        return native

    @property
    def at_cut(self) -> int:
        """Returns the number of boxes at the cut, on both sides."""
        return self.expected_at_cut + self.found_at_cut

    @property
    def recall_of_expected(self) -> float:
        """Returns the fraction of the detector's boxes that have a partner or are at the cut; 1 if there are none."""
        return self.to_native().recall_of_expected()

    @property
    def recall_of_found(self) -> float:
        """Returns the fraction of the hybrid's boxes that have a partner or are at the cut; 1 if there are none."""
        return self.to_native().recall_of_found()

    @property
    def recall(self) -> float:
        """Returns the lower one of both recalls."""
        return self.to_native().recall()

    @property
    def masks_recall(self) -> float:
        """Returns the fraction of the pairs' masks that agree; 1 if there are none."""
        return self.to_native().masks_recall()

    @property
    def keypoint_recall(self) -> float:
        """Returns the fraction of the pairs' keypoints that are near enough; 1 if there are none."""
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

    Masks and keypoints of the pairs are compared if both sides have them.

    Args:
        expected: boxes [n, 4] as (x1, y1, x2, y2), labels [n], scores [n]; best first. Optionally masks [n, 1, H, W] in
            0..1 (or 0 and 1), keypoints [n, K, 3] as (x, y, visible), keypoints_scores [n, K].
        found: the same fields, [m, ...].
        iou: lowest IoU of a pair; by default, that of fp32.
        score: largest difference of their scores; by default, any.
        mask_iou: see :class:`Thresholds`; by default, that of fp32.
        keypoint_distance: see :class:`Thresholds`; by default, that of fp32.

    Raises:
        InputError: An argument is not detections.
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
    """Returns the indices (expected, found) of the boxes that form pairs by the same rule."""
    return _native.matching_boxes(plain(expected), plain(found), thresholds.to_native())


def box_iou(first: Tensor, second: Tensor) -> Tensor:
    """Returns the intersection over union of boxes [n, 4] and [m, 4], (x1, y1, x2, y2), as [n, m].

    The IoU of equal boxes is 1, even if they are empty.
    """
    return _native.box_iou(first, second)


def detections_of(value: Any) -> list[Mapping[str, Tensor]] | None:
    """Returns the value if it is a list of detections (dicts with boxes [n, 4], labels [n], scores [n]), else None."""
    return list(value) if isinstance(value, (list, tuple)) and _native.are_detections(plain(value)) else None


def differences(match: BoxMatch, thresholds: Thresholds) -> list[str]:
    """Returns the differences in an image that exceed the thresholds; empty if it passes."""
    return _native.differences(match.to_native(), thresholds.to_native())
