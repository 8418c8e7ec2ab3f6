"""Tests of masks, keypoints and drift of matched boxes, and of recall in both directions."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from hybrid_rt import THRESHOLDS
from hybrid_rt.verification.boxes import BoxMatch, differences, match_boxes

Detections = dict[str, Tensor]

FP32 = THRESHOLDS["fp32"]


def two_people(**changes: Tensor) -> Detections:
    """Returns two boxes of 100x100 pixels in an image of 200x200, each with a square mask and three keypoints."""
    masks = torch.zeros(2, 1, 200, 200)
    masks[0, 0, 10:60, 10:60] = 0.9
    masks[1, 0, 110:160, 110:160] = 0.8
    points = torch.tensor([[20.0, 20.0, 1.0], [40.0, 20.0, 1.0], [30.0, 50.0, 1.0]])
    return {
        "boxes": torch.tensor([[0.0, 0.0, 100.0, 100.0], [100.0, 100.0, 200.0, 200.0]]),
        "labels": torch.tensor([1, 1]),
        "scores": torch.tensor([0.9, 0.8]),
        "masks": masks,
        "keypoints": torch.stack([points, points + torch.tensor([100.0, 100.0, 0.0])]),
        "keypoints_scores": torch.tensor([[5.0, 4.0, 3.0], [5.0, 4.0, 3.0]]),
        **changes,
    }


def matched(**changes: Tensor) -> BoxMatch:
    return match_boxes(two_people(), two_people(**changes), mask_iou=FP32.mask_iou, keypoint_distance=0.02)


def test_equal_masks_and_keypoints_agree() -> None:
    match = matched()
    assert (match.masks, match.masks_differ, match.min_mask_iou) == (2, 0, 1.0)
    assert (match.keypoints, match.keypoints_differ, match.max_keypoint_distance) == (6, 0, 0.0)
    assert match.max_keypoint_score_difference == 0.0
    assert differences(match, FP32) == []


def test_without_masks_and_keypoints_neither_is_mentioned() -> None:
    plain = {name: two_people()[name] for name in ("boxes", "labels", "scores")}
    match = match_boxes(plain, plain)
    assert (match.masks, match.min_mask_iou, match.max_keypoint_distance) == (0, None, None)
    assert (match.masks_recall, match.keypoint_recall) == (1.0, 1.0)


def test_a_mask_elsewhere_differs_although_its_box_matches() -> None:
    masks = two_people()["masks"].clone()
    masks[1] = masks[1].roll(25, dims=2)
    match = matched(masks=masks)
    assert match.matched == 2
    assert (match.masks_differ, match.min_mask_iou) == (1, pytest.approx(1 / 3))
    assert differences(match, FP32) == ["1 of 2 masks differ (IoU 0.333 at worst, 0.97 wanted)"]


def test_masks_are_cut_at_one_half() -> None:
    probabilities = two_people()["masks"]
    assert matched(masks=torch.where(probabilities > 0, 0.5, 0.49)).min_mask_iou == 1.0
    assert matched(masks=torch.where(probabilities > 0, 0.49, 0.0)).min_mask_iou == 0.0
    assert matched(masks=(probabilities >= 0.5).to(torch.uint8)).min_mask_iou == 1.0


@pytest.mark.parametrize(("pixels", "differ"), [(2, 0), (3, 1)])
def test_two_pixels_of_a_small_mask_may_differ(pixels: int, differ: int) -> None:
    small = torch.zeros(2, 1, 200, 200)
    small[:, :, 10:12, 10:12] = 1
    other = small.clone()
    other[0, 0, 10, 12 : 12 + pixels] = 1
    match = match_boxes(two_people(masks=small), two_people(masks=other), mask_iou=0.97)
    assert match.masks_differ == differ


def test_masks_of_another_size_differ() -> None:
    assert matched(masks=torch.zeros(2, 1, 100, 100)).masks_differ == 2


def test_empty_masks_are_equal() -> None:
    nothing = two_people(masks=torch.zeros(2, 1, 200, 200))
    assert match_boxes(nothing, nothing).min_mask_iou == 1.0


def moved(by: float) -> Tensor:
    points = two_people()["keypoints"].clone()
    points[0, 1, 0] += by
    return points


@pytest.mark.parametrize(("by", "differ"), [(1.9, 0), (2.1, 1), (50.0, 1)])
def test_a_keypoint_may_move_by_two_pixels_or_a_share_of_the_box(by: float, differ: int) -> None:
    match = matched(keypoints=moved(by))
    assert match.keypoints_differ == differ
    assert match.max_keypoint_distance == pytest.approx(by, abs=1e-4)


def test_the_share_of_the_box_grows_with_the_box() -> None:
    five = match_boxes(two_people(), two_people(keypoints=moved(4.9)), keypoint_distance=0.05)
    assert five.keypoints_differ == 0
    assert match_boxes(two_people(), two_people(keypoints=moved(5.1)), keypoint_distance=0.05).keypoints_differ == 1


def test_one_jump_of_many_keypoints_passes_and_more_fail() -> None:
    few = replace(matched(keypoints=moved(50.0)), keypoints=34)
    assert differences(few, FP32) == []  # 33 of 34
    assert differences(matched(keypoints=moved(50.0)), FP32) == [
        "1 of 6 keypoints are too far off (50.0 pixels at worst; 0.02 of the box wanted)"
    ]


def test_a_keypoint_that_is_visible_on_one_side_differs() -> None:
    points = two_people()["keypoints"].clone()
    points[0, 0, 2] = 0
    match = match_boxes(two_people(), two_people(keypoints=points), score=0.1)
    assert match.keypoints_differ == 1


def test_nan_keypoints_and_other_shapes_differ() -> None:
    match = matched(keypoints=moved(math.nan))
    assert (match.keypoints_differ, match.max_keypoint_distance) == (1, math.inf)
    match = matched(keypoints=torch.zeros(2, 5, 3))
    assert (match.keypoints_differ, match.max_keypoint_distance) == (6, math.inf)


def test_difference_of_keypoint_scores_is_kept() -> None:
    match = matched(keypoints_scores=torch.tensor([[5.0, 4.0, 3.0], [5.0, 4.0, 2.5]]))
    assert match.max_keypoint_score_difference == 0.5
    assert differences(match, FP32) == []


def test_drift_is_the_greatest_distance_of_a_corner() -> None:
    boxes = two_people()["boxes"].clone()
    boxes[1, 2:] += torch.tensor([3.0, 4.0])
    match = match_boxes(two_people(), two_people(boxes=boxes), iou=0.5)
    assert match.max_box_drift == pytest.approx(5.0)


def first(count: int) -> Detections:
    return {name: value[:count] for name, value in two_people().items()}


def test_recall_is_known_both_ways() -> None:
    lost, added = match_boxes(two_people(), first(1)), match_boxes(first(1), two_people())
    assert (lost.recall_of_expected, lost.recall_of_found) == (0.5, 1.0)
    assert (added.recall_of_expected, added.recall_of_found) == (1.0, 0.5)
    assert lost.recall == added.recall == 0.5


def test_the_best_box_without_a_partner_is_named() -> None:
    assert match_boxes(two_people(), first(1)).lost == (
        "the detector's box of label 1, score 0.800 at (100.0, 100.0, 200.0, 200.0) has no match"
    )
    assert match_boxes(first(0), two_people()).lost == (
        "the hybrid's box of label 1, score 0.900 at (0.0, 0.0, 100.0, 100.0) is not the detector's"
    )
    assert match_boxes(two_people(), two_people()).lost == ""


def test_boxes_at_the_threshold_are_counted_for_the_side_that_has_them() -> None:
    scores = torch.tensor([0.9, 0.0501])
    two, one = two_people(scores=scores), {name: value[:1] for name, value in two_people().items()}
    low = {name: value[1:] for name, value in two_people(scores=torch.tensor([0.9, 0.0502])).items()}
    low["boxes"] = low["boxes"] + 50
    both = {name: torch.cat([one[name], low[name]]) for name in one}
    match = match_boxes(two, both)
    assert (match.matched, match.expected_at_cut, match.found_at_cut, match.at_cut) == (1, 1, 1, 2)
    assert match.recall == 1.0
