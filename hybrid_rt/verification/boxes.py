"""Detections of one picture, the detector's against the hybrid's: the rule of which boxes are the same.

cpp/src/boxes.cpp holds the same rule for the target; tests/python/test_golden.py feeds both with the same results.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from .thresholds import Thresholds

_CUT = 1e-3
"""Scores that differ by no more are level."""

_MAX_CUT = 0.5
"""No detector's threshold is above it."""

_MASK_CUT = 0.5
"""torchvision's masks are probabilities; the object is where they are at least this."""

_MASK_PIXELS = 2
"""So many pixels of a mask may differ whatever its size."""

_KEYPOINT_PIXELS = 2.0
"""A keypoint may be so far off whatever the size of its box."""


@dataclass(frozen=True)
class BoxMatch:
    """Boxes of one picture, detector against hybrid, matched by label and IoU, best scores first.

    A box is at the cut if it has no partner, its score is below one half, and level with the other side's lowest one:
    there the detector's own threshold, or its limit of boxes, cuts, and rounding decides which side of it the box is
    on. Such boxes are counted, but not as lost.

    Attributes:
        expected: how many boxes the detector found.
        found: how many the hybrid found.
        matched: how many pairs they make.
        min_iou: the least IoU of a pair.
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
        where: which picture.
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

    @property
    def at_cut(self) -> int:
        """Boxes at the cut, of both sides."""
        return self.expected_at_cut + self.found_at_cut

    @property
    def recall_of_expected(self) -> float:
        """Share of the detector's boxes that the hybrid finds again (or that are at the cut); 1 if there are none."""
        return (self.matched + self.expected_at_cut) / self.expected if self.expected else 1.0

    @property
    def recall_of_found(self) -> float:
        """Share of the hybrid's boxes that the detector finds too (or that are at the cut); 1 if there are none."""
        return (self.matched + self.found_at_cut) / self.found if self.found else 1.0

    @property
    def recall(self) -> float:
        """The lower one of both ways."""
        return min(self.recall_of_expected, self.recall_of_found)

    @property
    def masks_recall(self) -> float:
        """Share of the pairs' masks that agree; 1 if there are none."""
        return 1.0 - self.masks_differ / self.masks if self.masks else 1.0

    @property
    def keypoint_recall(self) -> float:
        """Share of the pairs' keypoints that are near enough; 1 if there are none."""
        return 1.0 - self.keypoints_differ / self.keypoints if self.keypoints else 1.0

    @property
    def severity(self) -> float:
        """For finding the worst picture: 0 if all is equal, 3 if nothing is."""
        return (1 - self.recall) + (1 - self.masks_recall) + (1 - self.keypoint_recall)


def match_boxes(
    expected: Mapping[str, Tensor],
    found: Mapping[str, Tensor],
    *,
    iou: float = 0.99,
    score: float = 1.0,
    mask_iou: float = 0.8,
    keypoint_distance: float = 0.05,
) -> BoxMatch:
    """Matches two sets of detections one to one: equal label, IoU at least ``iou``, scores within ``score``.

    Masks and keypoints are compared for the pairs, where both sides have them.

    Args:
        expected: boxes [n, 4] as (x1, y1, x2, y2), labels [n], scores [n]; best first. If there are any: masks
            [n, 1, H, W] in 0..1 (or 0 and 1), keypoints [n, K, 3] as (x, y, visible), keypoints_scores [n, K].
        found: the same, [m, ...].
        iou: least IoU of a pair.
        score: greatest difference of their scores.
        mask_iou: see :class:`Thresholds`.
        keypoint_distance: see :class:`Thresholds`.
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
    left = [i for i in range(overlap.shape[0]) if i not in {i for i, _ in pairs}]
    right = [j for j in range(overlap.shape[1]) if not taken[j]]
    lost = _beyond_the_cut(expected["scores"], left, found["scores"], min(score, _CUT))
    extra = _beyond_the_cut(found["scores"], right, expected["scores"], min(score, _CUT))
    match = BoxMatch(
        expected=overlap.shape[0],
        found=overlap.shape[1],
        matched=len(pairs),
        min_iou=min((float(overlap[pair]) for pair in pairs), default=1.0),
        max_score_difference=max((float(difference[pair]) for pair in pairs), default=0.0),
        expected_at_cut=len(left) - len(lost),
        found_at_cut=len(right) - len(extra),
        max_box_drift=max((_drift(expected["boxes"][i], found["boxes"][j]) for i, j in pairs), default=0.0),
        lost=_lost(expected, lost, found, extra),
    )
    if "masks" in expected and "masks" in found:
        match = _with_masks(match, [(expected["masks"][i], found["masks"][j]) for i, j in pairs], mask_iou)
    if "keypoints" in expected and "keypoints" in found:
        match = _with_keypoints(match, expected, found, pairs, score, keypoint_distance)
    return match


def _beyond_the_cut(scores: Tensor, unmatched: Sequence[int], others: Tensor, tolerance: float) -> list[int]:
    """Those of the unmatched that are not low, and level with the lowest of ``others``."""
    lowest = float(others.min()) if others.numel() else 1.0
    if lowest >= _MAX_CUT:  # such boxes are what the detector is for
        return list(unmatched)
    return [i for i in unmatched if not abs(float(scores[i]) - lowest) <= tolerance]


def _lost(
    expected: Mapping[str, Tensor], lost: Sequence[int], found: Mapping[str, Tensor], extra: Sequence[int]
) -> str:
    """The best of the boxes without a partner, in words."""

    def best(scores: Tensor, candidates: Sequence[int]) -> int:
        return max(candidates, key=lambda i: (not math.isnan(float(scores[i])), float(scores[i])), default=-1)

    def text(detections: Mapping[str, Tensor], i: int) -> str:
        corners = ", ".join(f"{value:.1f}" for value in detections["boxes"][i].tolist())
        return f"box of label {int(detections['labels'][i])}, score {float(detections['scores'][i]):.3f} at ({corners})"

    i, j = best(expected["scores"], lost), best(found["scores"], extra)
    if i >= 0 and (j < 0 or not float(found["scores"][j]) > float(expected["scores"][i])):
        return f"the detector's {text(expected, i)} is not found again"
    return f"the hybrid's {text(found, j)} is not the detector's" if j >= 0 else ""


def _drift(first: Tensor, second: Tensor) -> float:
    difference = (first.double() - second.double()).reshape(2, 2)
    return float((difference * difference).sum(dim=1).max().sqrt())


def _with_masks(match: BoxMatch, pairs: Sequence[tuple[Tensor, Tensor]], mask_iou: float) -> BoxMatch:
    worst: float | None = None
    differ = 0
    for first, second in pairs:
        overlap, pixels = _mask_iou(first, second)
        worst = overlap if worst is None else min(worst, overlap)
        differ += overlap < mask_iou and pixels > _MASK_PIXELS
    return replace(match, masks=len(pairs), masks_differ=differ, min_mask_iou=worst)


def _mask_iou(first: Tensor, second: Tensor) -> tuple[float, int]:
    """IoU of two masks, and how many pixels differ; equal masks have 1, empty or not."""
    if first.shape != second.shape:
        return 0.0, max(first.numel(), second.numel(), _MASK_PIXELS + 1)
    a, b = first >= _MASK_CUT, second >= _MASK_CUT
    union = int((a | b).sum())
    return (int((a & b).sum()) / union if union else 1.0), int((a ^ b).sum())


def _with_keypoints(
    match: BoxMatch,
    expected: Mapping[str, Tensor],
    found: Mapping[str, Tensor],
    pairs: Sequence[tuple[int, int]],
    score: float,
    keypoint_distance: float,
) -> BoxMatch:
    count, differ = 0, 0
    worst: float | None = None
    worst_score: float | None = None
    has_scores = "keypoints_scores" in expected and "keypoints_scores" in found
    for i, j in pairs:
        first, second = expected["keypoints"][i].double(), found["keypoints"][j].double()
        count += first.shape[0]
        if first.shape != second.shape or first.dim() != 2 or first.shape[1] < 2:
            differ += first.shape[0]
            worst = math.inf
            continue
        x1, y1, x2, y2 = expected["boxes"][i].double().tolist()
        area = max(x2 - x1, 0.0) * max(y2 - y1, 0.0)
        allowed = max(keypoint_distance * math.sqrt(area), _KEYPOINT_PIXELS)
        for (x, y, *flags), (other_x, other_y, *other_flags) in zip(first.tolist(), second.tolist(), strict=True):
            distance = math.sqrt((x - other_x) * (x - other_x) + (y - other_y) * (y - other_y))
            same_flags = all(abs(a - b) <= score for a, b in zip(flags, other_flags, strict=True))
            differ += not (distance <= allowed and same_flags)
            worst = max(worst or 0.0, math.inf if math.isnan(distance) else distance)
        if has_scores and expected["keypoints_scores"][i].shape == found["keypoints_scores"][j].shape:
            scores = (expected["keypoints_scores"][i].double() - found["keypoints_scores"][j].double()).abs()
            worst_score = max([worst_score or 0.0, *scores.tolist()])
    return replace(
        match,
        keypoints=count,
        keypoints_differ=differ,
        max_keypoint_distance=worst,
        max_keypoint_score_difference=worst_score,
    )


def box_iou(first: Tensor, second: Tensor) -> Tensor:
    """Intersection over union of boxes [n, 4] and [m, 4] (x1, y1, x2, y2): [n, m]. Equal boxes have 1, empty or not."""
    top_left = torch.maximum(first[:, None, :2], second[None, :, :2])
    bottom_right = torch.minimum(first[:, None, 2:], second[None, :, 2:])
    intersection = (bottom_right - top_left).clamp(min=0).prod(dim=2)
    areas = [(boxes[:, 2:] - boxes[:, :2]).clamp(min=0).prod(dim=1) for boxes in (first, second)]
    union = areas[0][:, None] + areas[1][None] - intersection
    equal = (first[:, None] == second[None]).all(dim=2)
    return torch.where(equal, torch.ones_like(union), intersection / union.clamp(min=1e-12))


def detections_of(value: Any) -> list[Mapping[str, Tensor]] | None:
    """The value if it is a list of detections (dicts with boxes [n, 4], labels [n] and scores [n]), else None."""
    return list(value) if isinstance(value, (list, tuple)) and all(map(_are_detections, value)) else None


def _are_detections(value: Any) -> bool:
    if not isinstance(value, Mapping) or not all(
        isinstance(value.get(name), Tensor) for name in ("boxes", "labels", "scores")
    ):
        return False
    boxes = value["boxes"]
    count = tuple(boxes.shape[:1])
    return tuple(boxes.shape[1:]) == (4,) and tuple(value["labels"].shape) == tuple(value["scores"].shape) == count


def differences(match: BoxMatch, thresholds: Thresholds) -> list[str]:
    """What of a picture differs by more than the thresholds allow, in words; empty if it passes."""
    found = []
    if match.recall < thresholds.recall:
        found.append(
            f"{match.matched} of {match.expected} boxes found again among {match.found} "
            f"(same label, IoU >= {thresholds.iou:g}, score within {thresholds.score:g})"
            + (f"; {match.lost}" if match.lost else "")
        )
    if match.masks_recall < thresholds.recall:
        found.append(
            f"{match.masks_differ} of {match.masks} masks differ (IoU {match.min_mask_iou:.3f} at worst, "
            f"{thresholds.mask_iou:g} wanted)"
        )
    if match.keypoint_recall < thresholds.keypoint_recall:
        found.append(
            f"{match.keypoints_differ} of {match.keypoints} keypoints are too far off "
            f"({match.max_keypoint_distance:.1f} pixels at worst; {thresholds.keypoint_distance:g} of the box wanted)"
        )
    return found


def compare_detections(
    expected: Mapping[str, Tensor], found: Mapping[str, Tensor], thresholds: Thresholds, where: str
) -> BoxMatch:
    """:func:`match_boxes` by the thresholds."""
    match = match_boxes(
        expected,
        found,
        iou=thresholds.iou,
        score=thresholds.score,
        mask_iou=thresholds.mask_iou,
        keypoint_distance=thresholds.keypoint_distance,
    )
    return replace(match, where=where)
